"""A source, its conversion and texts, made once."""

from __future__ import annotations

import learners
import pytest

import gqkva_convert
from gqkva_convert.uptraining.run_folder import RunFolder


@pytest.fixture(scope="session")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> learners.Lesson:
    folder = tmp_path_factory.mktemp("lesson")
    learners.make_decoder(folder / "fresh")
    data = learners.write_texts(folder / "texts.jsonl")
    teacher = folder / "mha"
    settings = {"data": str(data), "length": 16, "tokens": 80 * 512, "learning_rate": 1e-2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GQKVA_CACHE", str(folder / "cache"))
        gqkva_convert.pretrain(folder / "fresh", teacher, gqkva_convert.TrainingSettings(**settings))
    student = learners.make_conversion(teacher, folder / "gqa")
    return learners.Lesson(teacher, student, data)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def plots() -> None:
    """A test that asks for it has the plots of its runs drawn."""


@pytest.fixture(autouse=True)
def _draw_on_request(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the losses takes longer than ten steps of training a tiny model."""
    if "plots" not in request.fixturenames:
        monkeypatch.setattr(RunFolder, "draw", lambda *arguments: None)
