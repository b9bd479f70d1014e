"""The model that is trained, as its folder has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.errors import CheckpointError, first_line
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.source.model import family_of


def load_student(folder: Path) -> Any:
    """Load the model of a folder, in float32, as it is trained.

    Raises:
        FamilyError: It is of no family that is known.
        CheckpointError: transformers cannot load it.
    """
    family = family_of(read_json(folder / "config.json"), folder)
    try:
        return load_model(folder, family.architecture)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {first_line(error)}") from error
