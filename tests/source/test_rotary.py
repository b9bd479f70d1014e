"""What a configuration says of rotary positions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]


@pytest.mark.parametrize("value", [1.5, -0.5, float("inf"), float("nan")])
def test_a_share_that_cannot_turn_is_refused(
    value: float, tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """Steps name the planes that turn, so that no merge gets as far as features that do not exist."""
    (source := tmp_path / "source").mkdir()
    for file in tiny("stablelm").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config["partial_rotary_factor"] = value
    config["rope_parameters"] = None
    (source / "config.json").write_text(json.dumps(config))
    result = gqkva("convert", source, tmp_path / "out", "--gkv", 2, "--dry-run")
    assert result.exit_code == 4, result.output
    assert f"partial_rotary_factor must be from 0 to 1, found {value}" in result.stderr
