"""The model that is trained, as it stands in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gqkva_convert.architectures import FAMILIES, Family
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.errors import CheckpointError, first_line
from gqkva_convert.modeling.families import MODEL_TYPE_PREFIX
from gqkva_convert.modeling.loading import load_model


def load_student(folder: Path) -> Any:
    """The model of a folder, in float32, as it is trained.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    family = family_of(folder)
    try:
        return load_model(folder, family.architecture)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {first_line(error)}") from error


def family_of(folder: Path) -> Family:
    """The family of a checkpoint folder.

    Raises:
        CheckpointError: It is of none that is known.
    """
    model_type = str(read_json(folder / "config.json").get("model_type")).removeprefix(MODEL_TYPE_PREFIX)
    if model_type not in FAMILIES:
        raise CheckpointError(f"{folder}: no family {model_type!r}; known are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]
