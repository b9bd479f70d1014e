"""Documentation that is checked stays true."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

import gqkva_convert
from gqkva_convert import COMMANDS, errors
from gqkva_convert.architectures import FAMILIES
from gqkva_convert.heads import GROUPINGS
from gqkva_convert.transforms.merge import RULES

ROOT = Path(__file__).parents[1]
FAMILIES_PAGE = ROOT / "docs" / "families.md"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("recipes", "benchmarks")),
]


def test_every_command_has_help_and_a_section(gqkva: Callable[..., Result]) -> None:
    """A command nobody can find might as well not exist."""
    page = (ROOT / "docs" / "cli.md").read_text()
    for command in COMMANDS:
        assert f"## gqkva {command}\n" in page
        assert gqkva(command, "--help").exit_code == 0
    listed = gqkva("--help").stdout
    assert all(command in listed for command in COMMANDS)


def test_the_readme_shows_commands_that_parse(gqkva: Callable[..., Result]) -> None:
    """Users paste from the README; every option in it must exist."""
    lines = re.findall(r"^gqkva ([a-z]+) ?(.*?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {command for command, _ in lines} >= {"inspect", "convert", "verify"}
    for command, rest in lines:
        help_text = gqkva(command, "--help").stdout
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in help_text, f"{command} {option}"


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<!`)`[^`\n]*`(?!`)", lambda code: code[0].replace("[", "").replace("]", ""), text)


@functools.cache
def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).strip().replace(" ", "-")
        number = sum(
            name == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", name) is not None for name in found
        )
        found.add(f"{slug}-{number}" if slug in found else slug)
    return found


def dead_links(page: Path) -> list[str]:
    """Links of a page that lead to no file of the repository, or to no heading of it."""
    found = []
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", prose(page)):
        wanted = (page.parent / target).resolve() if target else page
        is_alive = wanted.exists() and wanted.is_relative_to(ROOT)
        if not is_alive or (anchor and anchor not in anchors(wanted)):
            found.append(f"{target}#{anchor}")
    return found


def test_links_lead_somewhere() -> None:
    """A dead link is the first thing a newcomer meets."""
    assert {str(page.relative_to(ROOT)): links for page in PAGES if (links := dead_links(page))} == {}


def test_every_promise_of_security_names_its_tests() -> None:
    """A promise that no test keeps is a wish."""
    text = (ROOT / "SECURITY.md").read_text()
    promises = re.split(r"^- (?=\*\*)", text.partition("\nThese are yours")[0], flags=re.MULTILINE)[1:]
    assert len(promises) >= 9
    for promise in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
        assert named, promise
        for file, name in named:
            assert f"\ndef {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


def test_every_page_is_in_the_navigation() -> None:
    """A page that nothing leads to is not read."""
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in sorted((ROOT / "docs").rglob("*.md")):
        assert f": {page.relative_to(ROOT / 'docs')}\n" in listed


def test_every_method_is_described() -> None:
    """A rule without a source is a rumour."""
    page = (ROOT / "docs" / "methods.md").read_text()
    assert all(f"`{name}`" in page for name in (*RULES, *GROUPINGS))


def test_every_family_is_listed() -> None:
    """Users look for their model first."""
    page = FAMILIES_PAGE.read_text()
    assert all(f"| {name} |" in page for name in FAMILIES)


def test_families_without_a_stock_form_of_unequal_groups_are_told() -> None:
    """The page must say what `tests/conversion/test_export.py` finds to be refused."""
    rows = re.findall(
        r"^\| ([\w-]+) \| (?:stock|grouped) \| yes \| (\w+)", FAMILIES_PAGE.read_text(), re.MULTILINE
    )
    assert {name for name, _ in rows} == set(FAMILIES)
    assert {name for name, exported in rows if exported != "yes"} == {"olmo2", "phi", "stablelm"}


def test_every_public_name_is_described() -> None:
    """Whoever works from Python looks here first."""
    page = (ROOT / "docs" / "python.md").read_text()
    assert all(f"## {name}\n" in page for name in gqkva_convert.__all__)


def test_every_error_has_its_own_documented_exit_code() -> None:
    """Scripts act on exit codes."""
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaseException)
    ]
    # A head count that cannot be is a usage error, too; its class is written into modelling files as it is.
    codes = [kind.exit_code for kind in kinds if kind is not errors.LayoutError]
    assert len(set(codes)) == len(codes)
    assert errors.LayoutError.exit_code == errors.UsageError.exit_code
    page = (ROOT / "docs" / "errors.md").read_text()
    assert all(
        f"| {kind.exit_code} | `{kind.__name__}` |" in page for kind in kinds if kind.__name__ != "GqkvaError"
    )
