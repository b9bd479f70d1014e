"""The teacher: the source model beside the student, or its likeliest tokens written down beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqkva_convert.checkpoint.folder import open_checkpoint
from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.data.alike import ANSWERS, require_alike
from gqkva_convert.errors import TrainingError, first_line, is_out_of_memory
from gqkva_convert.modeling.families import stock_name
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.source.model import family_of
from gqkva_convert.source.stock import require_loadable
from gqkva_convert.uptraining.rows.row import Row
from gqkva_convert.uptraining.settings import TrainingSettings

NOTE = "gqkva_teacher.json"
ROWS_PER_FILE = 256


def load_teacher(settings: TrainingSettings, folder: Path, student: Any, device: torch.device) -> Any:
    """Load the source model, frozen.

    Args:
        settings: Of the run.
        folder: Folder of the model that is trained.
        student: The model.
        device: Where the student runs.

    Raises:
        TrainingError: It does not match the student.
        GqkvaError: It cannot be loaded.
    """
    assert settings.teacher is not None
    located = locate(settings.teacher, None)
    checkpoint = open_checkpoint(located.folder)
    require_loadable(checkpoint, family_of(checkpoint.config, located.folder))
    fallback = stock_name(type(student).__name__)
    dtype = settings.teacher_dtype or ("float32" if device.type == "cpu" else "bfloat16")
    try:
        teacher = load_model(located.folder, fallback, dtype)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise TrainingError(f"the teacher {settings.teacher} does not load: {first_line(error)}") from error
    named = (f"the teacher {settings.teacher}", "the student")
    keys = ("model_type", *ANSWERS, "hidden_size", "num_hidden_layers")
    require_alike(named, (teacher, student), (located.folder, folder), keys, TrainingError)
    teacher.requires_grad_(False)
    if settings.teacher_device is None:
        return teacher.to(device)
    try:
        return teacher.to(torch.device(settings.teacher_device))
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise TrainingError(f"teacher_device {settings.teacher_device}: {first_line(error)}") from error


class StoredTeacher:
    """A teacher's likeliest tokens for the rows of a run.

    Args:
        folder: Folder that `gqkva teacher` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        note = read_json(folder / NOTE)
        if not isinstance(note, dict) or not {"rows", "digest", "top_k", "temperature"} <= note.keys():
            raise TrainingError(f"{folder / NOTE} is damaged; run `gqkva teacher` again")
        self.note = note

    def check(self, digest: str, vocab_size: int, temperature: float) -> None:
        """Refuse to teach rows that the teacher was not run on.

        Raises:
            TrainingError: They are others.
        """
        if self.note["digest"] != digest:
            raise TrainingError(
                f"{self.folder} was made for other rows; give the same data, length, budget, held_out_rows, "
                "packing and seed as `gqkva teacher` was given"
            )
        if self.note["vocab_size"] != vocab_size:
            raise TrainingError(
                f"the teacher of {self.folder} has {self.note['vocab_size']} tokens, the student {vocab_size}"
            )
        if self.note["temperature"] != temperature:
            raise TrainingError(
                f"{self.folder} was made at temperature {self.note['temperature']}, found {temperature}"
            )

    def of(self, rows: list[Row]) -> dict[str, Tensor]:
        """Read log-probabilities ``(rows, positions, k + 1)``, all others' last, and tokens."""
        found = [self._row(int(row["row"])) for row in rows]
        return {
            # As bits: mixed precision rounds every floating-point input of a model.
            "top_values": torch.stack([v.float().log_softmax(-1).view(torch.int32) for v, _ in found]),
            "top_indices": torch.stack([indices for _, indices in found]),
        }

    def _row(self, number: int) -> tuple[Tensor, Tensor]:
        from safetensors import safe_open

        file, place = divmod(number, ROWS_PER_FILE)
        with safe_open(self.folder / file_name(file), framework="pt") as stored:
            return stored.get_slice("values")[place], stored.get_slice("indices")[place]


def file_name(number: int) -> str:
    """Name a file of stored log-probabilities."""
    return f"logits-{number:05d}.safetensors"


def is_stored(teacher: str | None) -> bool:
    """Return whether a teacher is a folder of `gqkva teacher`."""
    return teacher is not None and (Path(teacher) / NOTE).is_file()
