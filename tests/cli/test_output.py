"""What commands show while they work."""

from __future__ import annotations

import io

import pytest
from rich import console as rich_console

from gqkva_convert.cli.output import stage_progress
from gqkva_convert.progress import byte_stage


def test_stages_count_bytes_and_other_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar over bytes says megabytes and speed, one over batches a number of a number."""
    shown, console = io.StringIO(), rich_console.Console
    monkeypatch.setattr(
        rich_console,
        "Console",
        lambda **options: console(file=shown, force_terminal=True, width=120, **{"stderr": False}),
    )
    counted: list[int] = []
    with stage_progress() as stages:
        stages("measuring", 7)(3)
        byte_stage(stages, "writing out", 4_000_000, counted.append)(1_000_000)
    assert "measuring" in shown.getvalue()
    assert "3/7" in shown.getvalue()
    assert "1.0/4.0 MB" in shown.getvalue()
    assert counted == [1_000_000]
