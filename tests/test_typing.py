"""The types that a user of the installed package sees."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gqkva_convert

# What calling a public name gives, as a user would write it, and what a call gives where that depends on it.
RESULTS = {
    "DataSettings": "gqkva_convert.DataSettings",
    "EvaluationSettings": "gqkva_convert.EvaluationSettings",
    "GqkvaError": "gqkva_convert.GqkvaError",
    "HeadLayout": "gqkva_convert.HeadLayout",
    "Request": "gqkva_convert.Request",
    "TrainingSettings": "gqkva_convert.TrainingSettings",
    "bench": "dict[str, Any]",
    "compare": "dict[str, Any]",
    "demo": "dict[str, Any]",
    "evaluate": "list[dict[str, Any]]",
    "export": "Path",
    "init": "dict[str, Any]",
    "inspect": "dict[str, Any]",
    "plan": "dict[str, Any]",
    "pretrain": "dict[str, Any]",
    "push": "dict[str, Any]",
    "report": "list[Path]",
    "run": "dict[str, Any]",
    "teacher": "dict[str, Any]",
    "uptrain": "dict[str, Any]",
    "verify": "dict[str, Any]",
}
CALLS = {
    "HeadLayout.gqa(8, 2, 4)": "gqkva_convert.HeadLayout",
    "convert('model', 'out')": "Path",
    "convert('model', 'out', dry_run=True)": "dict[str, Any]",
}
HEAD = """
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import assert_type

import gqkva_convert

T = TypeVar("T")


def result(function: Callable[..., T]) -> T:
    raise NotImplementedError


"""
# torch and transformers are large and in no public type: reading them would take half a minute.
SETTINGS = """
[mypy]
strict = true
follow_imports = skip
[mypy-gqkva_convert.*,pydantic.*]
follow_imports = normal
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Run mypy on lines of a user's script, against the package as it is installed."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mypy.ini").write_text(SETTINGS)

    def check(lines: str) -> list[str]:
        (folder / "script.py").write_text(HEAD + lines)
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--no-error-summary", "script.py"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1), done.stderr
        return done.stdout.splitlines()

    return check


def test_every_public_name_has_the_type_that_is_promised(errors: Callable[[str], list[str]]) -> None:
    """Editors and type checkers see what calls return; Any, or a package without py.typed, fails here."""
    assert {*RESULTS, *(re.split(r"\W", call)[0] for call in CALLS)} == set(gqkva_convert.__all__)
    given = {f"result(gqkva_convert.{name})": kind for name, kind in RESULTS.items()}
    given |= {f"gqkva_convert.{call}": kind for call, kind in CALLS.items()}
    lines = [f"assert_type({expression}, {kind})" for expression, kind in given.items()]
    assert errors("\n".join(lines)) == []


def test_a_wrong_name_or_type_is_found(errors: Callable[[str], list[str]]) -> None:
    """Names are loaded when first used, which must not make every name right."""
    found = errors(
        "gqkva_convert.no_such_name\n"
        "assert_type(gqkva_convert.convert('model', 'out'), str)\n"
        "gqkva_convert.HeadLayout.gqa('8', 2, 4)\n"
    )
    assert [line.rpartition("[")[2] for line in found] == ["attr-defined]", "assert-type]", "arg-type]"]


def test_the_package_says_that_it_is_typed() -> None:
    """Without this file type checkers ignore every annotation."""
    assert (Path(gqkva_convert.__file__).parent / "py.typed").is_file()
