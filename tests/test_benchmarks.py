"""What the documentation says of a conversion's cost is what the benchmark measured, of the same command."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "docs" / "benchmarks.md"


@pytest.fixture
def conversion(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`benchmarks/conversion.py`, whose modules import each other by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import conversion as module

    yield module
    for path in (ROOT / "benchmarks").glob("*.py"):
        sys.modules.pop(path.stem, None)


def measured(command: str, note: str = "") -> dict[str, str]:
    """The row of a tool in the documentation's table, by column."""
    section = BENCHMARKS.read_text().partition("## Conversion cost")[2]
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in section.splitlines() if "|" in line
    ]
    heading = next(row for row in rows if row[0] == "tool")
    return dict(zip(heading, next(row for row in rows if row[0] == f"`{command}`{note}"), strict=True))


def test_the_documented_commands_are_those_that_are_timed(conversion: ModuleType, tmp_path: Path) -> None:
    """A figure of a faster rule once stood beside the default's command."""
    from results import TOOLS

    arguments = argparse.Namespace(
        folder=tmp_path, rounds=1, seed=0, mergekit=None, only="", json=None, small=True
    )
    commands = conversion.Bench(arguments).commands(tmp_path / "source")
    for tool in ("convert", "convert_mean"):
        options = " ".join(map(str, commands[tool][6:]))
        assert [str(part) for part in commands[tool][2:4]] == ["gqkva_convert", "convert"]
        assert TOOLS[tool] == f"`gqkva convert {options}`"
    assert "--merge" not in commands["convert"]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_pages_repeat_the_measured_figures(page: str) -> None:
    """Figures that are copied by hand drift."""
    text = " ".join((ROOT / page).read_text().split())
    copy = measured("cp -r", " (copy only)")
    found = re.search(
        r"`gqkva convert --gkv 8` takes (\d+) s of CPU time and (\S+) GB of memory, `--merge mean` (\d+) s "
        r"and (\S+) GB, where copying takes (\d+) s",
        text,
    )
    assert found is not None
    expected = [
        figure
        for row in (measured("gqkva convert --gkv 8"), measured("gqkva convert --gkv 8 --merge mean"))
        for figure in (f"{float(row['CPU, s']):.0f}", f"{float(row['peak RSS, MB']) / 1000:.1g}")
    ]
    assert list(found.groups()) == [*expected, f"{float(copy['CPU, s']):.0f}"]
