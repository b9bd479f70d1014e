"""Tokenizer and processor files of a grouped model name their classes, since its ``model_type`` cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gqkva_convert.architectures import Inputs
from gqkva_convert.checkpoint.jsonfile import read_json, write_json

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


def name_classes(folder: Path, classes: Inputs) -> None:
    """Write into tokenizer and processor configurations the classes that they leave to ``model_type``.

    Args:
        folder: A grouped checkpoint being written.
        classes: The classes that transformers chooses for the stock model type.
    """
    tokenizer = folder / "tokenizer_config.json"
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        _name(tokenizer, {"tokenizer_class": classes.tokenizer}, create=True)
    names = {
        "image_processor_type": classes.image_processor,
        "feature_extractor_type": classes.feature_extractor,
        "processor_class": classes.processor,
    }
    _name(folder / "preprocessor_config.json", names, create=False)


def _name(path: Path, names: dict[str, str | None], *, create: bool) -> None:
    """Add the names that a file lacks."""
    if not path.is_file() and not create:
        return
    config: dict[str, Any] = read_json(path) if path.is_file() else {}
    # Old files name a feature extractor for images, which transformers still understands.
    given = {*config, *(["image_processor_type"] if "feature_extractor_type" in config else [])}
    missing = {key: value for key, value in names.items() if value and key not in given}
    if missing:
        path.unlink(missing_ok=True)  # a copy may be read-only
        write_json(path, {**config, **missing})
