"""The folder of a training run, as kills leave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gqkva_convert.errors import OutputError
from gqkva_convert.uptraining.run_folder import RunFolder


def test_a_run_killed_before_its_settings_were_written_can_begin(tmp_path: Path) -> None:
    """It has nothing to go on from, and must not be taken for somebody else's folder."""
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    (run.path / ".settings.json.new").write_text('{"fol')
    run.begin({"folder": "x"}, overwrite=False)
    assert run.settings() == {"folder": "x"}
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "settings.json"]


@pytest.mark.parametrize("name", ["thesis.tex", "checkpoints/step-000000001"])
def test_a_folder_with_anything_else_is_refused(name: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (run.path / name).mkdir(parents=True)
    with pytest.raises(OutputError, match="is not the folder of a run"):
        run.begin({}, overwrite=False)
