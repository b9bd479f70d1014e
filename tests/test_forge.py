"""What a forge and a package index read: workflows, metadata, citation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import gqkva_convert

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = Path(gqkva_convert.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[str, Any]:
    """A YAML file; `on` stays a string."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.yaml_implicit_resolvers = {
        first: [entry for entry in entries if entry[0] != "tag:yaml.org,2002:bool"]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    data = yaml.load(path.read_text(), loader)
    assert isinstance(data, dict)
    return data


def jobs() -> list[tuple[str, dict[str, Any]]]:
    """Every job of every workflow, with a name for messages."""
    return [(f"{path.name}: {name}", job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()]


def steps() -> list[dict[str, Any]]:
    """Every step of every job."""
    return [step for _, job in jobs() for step in job.get("steps", ())]


def pythons() -> set[str]:
    """Python versions that the classifiers name."""
    return set(re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"])))


def newest(versions: set[str]) -> str:
    """The last of them, 3.10 after 3.9."""
    return max(versions, key=lambda version: int(version.split(".")[1]))


def test_actions_are_pinned_by_commit_and_say_their_version() -> None:
    """A tag can be moved to other code, which then publishes our releases."""
    lines = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert len(lines) > 5
    for line in lines:
        assert re.search(r"uses: (\./\S+$|[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$)", line), line


def test_an_action_is_of_one_version_everywhere() -> None:
    """An update that forgets a place is found."""
    used = {step["uses"] for step in steps() if "uses" in step}
    assert len(used) == len({action.partition("@")[0] for action in used})


def test_workflows_get_the_permissions_they_need_and_no_more() -> None:
    """Only the job that publishes may ask for an identity; nothing may write to the repository."""
    assert {path.name for path in WORKFLOWS} == {"ci.yml", "release.yml"}
    for path in WORKFLOWS:
        assert read(path)["permissions"] == {"contents": "read"}
    asked = {name: job["permissions"] for name, job in jobs() if "permissions" in job}
    assert asked == {"release.yml: publish": {"id-token": "write"}}
    for step in steps():
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"


def test_no_workflow_runs_for_hours_or_beside_itself() -> None:
    """A test that hangs must not use up the minutes of everybody."""
    for name, job in jobs():
        assert "uses" in job or int(job["timeout-minutes"]) <= 60, name
    assert all(read(path)["concurrency"]["group"] for path in WORKFLOWS)


def test_workflows_name_files_and_extras_that_exist() -> None:
    """Nobody runs a workflow before it is on the forge; a typing error in it would show there."""
    commands = "\n".join(step.get("run", "") for step in steps())
    rows = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["include"]
    cached = {step["with"]["cache-dependency-path"] for step in steps() if "cache" in step.get("with", {})}
    named = {row["versions"] for row in rows} | cached - {"${{ matrix.versions }}"}
    named |= set(re.findall(r"(?<!\S)\.ci/\S+|constraints\.txt", commands))
    assert {".ci/try_wheel", ".ci/check_release.py", ".ci/lowest.txt", "constraints.txt"} == named
    assert all((ROOT / path).is_file() for path in named)
    assert os.access(ROOT / ".ci" / "try_wheel", os.X_OK)
    assert set(re.findall(r"\.\[(\w+)\]", commands)) == {"test", "docs"}
    assert {"test", "docs"} <= set(PROJECT["optional-dependencies"])
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make (\w+)", commands)) == {"lint", "docs"} <= targets


def test_tests_run_on_the_oldest_and_the_newest_python() -> None:
    """What classifiers and requires-python promise is tested; lowest versions go with the oldest Python."""
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert oldest in pythons()
    assert len(pythons()) == int(newest(pythons())[2:]) - int(oldest[2:]) + 1
    ci = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    tested = {(row["python"], row["versions"]) for row in ci["tests"]["strategy"]["matrix"]["include"]}
    assert tested >= {
        (oldest, ".ci/lowest.txt"),
        (oldest, "constraints.txt"),
        (newest(pythons()), "constraints.txt"),
    }
    assert set(ci["wheel"]["strategy"]["matrix"]["python"]) == {oldest, newest(pythons())}
    assert {python for python, _ in tested} <= pythons()


def test_what_is_published_is_what_was_tested() -> None:
    """The release publishes the files of the build that CI tried, and builds none itself."""
    release = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]
    assert release["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert release["publish"]["needs"] == "ci"
    assert release["publish"]["environment"]["name"] == "pypi"
    assert not any("run" in step for step in release["publish"]["steps"])
    ci = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    (kept,) = [step["with"]["name"] for step in ci["build"]["steps"] if "upload" in step.get("uses", "")]
    for job in (ci["wheel"], release["publish"]):
        assert [step["with"]["name"] for step in job["steps"] if "download" in step.get("uses", "")] == [kept]
    assert not any("cache" in step.get("with", {}) for step in ci["build"]["steps"])


@pytest.mark.parametrize(
    ("tag", "dated", "message"),
    [
        ("v1.2.3", True, "v1.2.3 can be released"),
        ("v1.2.4", True, "says 1.2.3: tag v1.2.3"),
        ("1.2.3", True, "says 1.2.3: tag v1.2.3"),
        ("v1.2.3", False, "no section '## 1.2.3 - YYYY-MM-DD'"),
    ],
)
def test_a_tag_that_is_not_the_version_is_refused(
    tmp_path: Path, tag: str, dated: bool, message: str
) -> None:
    """A version on the package index can never be used again."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / "gqkva_convert").mkdir()
    script = tmp_path / ".ci" / "check_release.py"
    script.write_bytes((ROOT / ".ci" / "check_release.py").read_bytes())
    (tmp_path / "gqkva_convert" / "_version.py").write_text('"""One."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"## 1.2.3 - {'2026-01-31' if dated else 'unreleased'}\n")
    done = subprocess.run([sys.executable, script, tag], capture_output=True, text=True)
    assert message in done.stdout + done.stderr
    assert (done.returncode == 0) == ("can be released" in message)


def test_the_citation_is_of_this_version() -> None:
    """Forges offer CITATION.cff to copy."""
    citation = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == gqkva_convert.__version__
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]
    readme = " ".join((ROOT / "README.md").read_text().split())
    cards = "\n".join(path.read_text() for path in (PACKAGE / "description").glob("*.py"))
    for paper in citation["references"]:
        number = paper["url"].removeprefix("https://arxiv.org/abs/")
        assert f"{paper['authors'][0]['family-names']} et al., {paper['year']}, arXiv {number}" in readme
        assert f"title={{{paper['title']}}}" in cards
        assert f"eprint={{{number}}}" in cards


def test_the_project_has_one_address() -> None:
    """Checkpoints, cards, the package index and citations lead to the same place."""
    home = PROJECT["urls"]["Homepage"]
    assert all(url.startswith(home) for url in PROJECT["urls"].values())
    assert read(ROOT / "CITATION.cff")["url"] == home
    for part in ("description", "modeling"):
        text = "\n".join(path.read_text() for path in (PACKAGE / part).glob("*.py"))
        assert set(re.findall(r"https://pypi\.org/[\w./-]*\w", text)) == {home}
    release = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]["publish"]
    assert release["environment"]["url"] == home


def test_hooks_are_of_the_versions_that_ci_uses() -> None:
    """A formatter of another version would undo at each commit what CI asks for."""
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    hooks = {entry["repo"]: entry.get("rev") for entry in read(ROOT / ".pre-commit-config.yaml")["repos"]}
    assert hooks["https://github.com/astral-sh/ruff-pre-commit"] == f"v{pinned['ruff']}"
    assert hooks["https://github.com/codespell-project/codespell"] == f"v{pinned['codespell']}"


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=str)
def test_issue_forms_can_be_filled_in(path: Path) -> None:
    """A form with a field of an unknown kind, or two of one id, is not shown."""
    form = read(path)
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"checkboxes", "dropdown", "input", "textarea"}
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields) > 0
