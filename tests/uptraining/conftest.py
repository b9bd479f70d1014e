"""A source, its conversion and texts, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import learners
import pytest


@dataclass(frozen=True)
class Lesson:
    """A source, its conversion, and data to learn from."""

    teacher: Path
    student: Path
    data: Path


@pytest.fixture(scope="session")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    folder = tmp_path_factory.mktemp("lesson")
    teacher = learners.make_decoder(folder / "mha")
    student = learners.make_conversion(teacher, folder / "gqa")
    return Lesson(teacher, student, learners.write_texts(folder / "texts.jsonl"))


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
