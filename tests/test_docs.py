"""Documentation that is checked stays true."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from gqkva_convert import errors
from gqkva_convert.architectures import FAMILIES
from gqkva_convert.heads import GROUPINGS
from gqkva_convert.transforms.merge import RULES

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "inspect",
    "plan",
    "convert",
    "evaluate",
    "uptrain",
    "teacher",
    "bench",
    "export",
    "init",
    "pretrain",
    "verify",
    "run",
    "report",
    "push",
    "demo",
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A dead link is the first thing a newcomer meets."""
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_method_is_described() -> None:
    """A rule without a source is a rumour."""
    page = (ROOT / "docs" / "methods.md").read_text()
    assert all(f"`{name}`" in page for name in (*RULES, *GROUPINGS))


def test_every_family_is_listed() -> None:
    """Users look for their model first."""
    page = (ROOT / "docs" / "families.md").read_text()
    assert all(f"| {name} |" in page for name in FAMILIES)


def test_every_error_has_its_own_documented_exit_code() -> None:
    """Scripts act on exit codes."""
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaseException)
    ]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
    page = (ROOT / "docs" / "errors.md").read_text()
    assert all(
        f"| {kind.exit_code} | `{kind.__name__}` |" in page for kind in kinds if kind.__name__ != "GqkvaError"
    )
