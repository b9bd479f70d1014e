"""Tokenizer and processor files of a grouped model name their classes, since its ``model_type`` cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gqkva_convert.architectures import Family
from gqkva_convert.checkpoint.jsonfile import read_json, write_json

_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
# Transformers' class for tokenizers that are all in tokenizer.json.
_BACKEND = "TokenizersBackend"
# Model types whose tokenizers transformers loads with its own class, whatever class a folder names
# (its MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS).
OVERRULED = frozenset({"phi3", "qwen2"})


def name_classes(folder: Path, family: Family, config: dict[str, Any]) -> None:
    """Write into tokenizer and processor configurations the classes that they leave to ``config.json``.

    There they follow from a class that it names, and otherwise from its ``model_type``.

    Args:
        folder: A grouped checkpoint being written.
        family: Its family.
        config: Its ``config.json``.
    """
    classes = family.inputs
    path = folder / "tokenizer_config.json"
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        is_fixed = classes.tokenizer == _BACKEND or family.model_type in OVERRULED
        named = None if is_fixed else config.get("tokenizer_class")
        _name(path, {"tokenizer_class": named or classes.tokenizer}, create=True, overrule=is_fixed)
    names = {
        "image_processor_type": classes.image_processor,
        "feature_extractor_type": classes.feature_extractor,
        "processor_class": classes.processor,
    }
    stated = {key: config.get(key) or name for key, name in names.items()}
    _name(folder / "preprocessor_config.json", stated, create=False)


def _name(path: Path, names: dict[str, str | None], *, create: bool, overrule: bool = False) -> None:
    """Add the names that a file lacks, or all of them."""
    if not path.is_file() and not create:
        return
    config: dict[str, Any] = read_json(path) if path.is_file() else {}
    # Old files name a feature extractor for images, which transformers still understands.
    given = {key for key, value in config.items() if value is not None}
    given |= {"image_processor_type"} if "feature_extractor_type" in given else set()
    missing = {key: value for key, value in names.items() if value and (overrule or key not in given)}
    if any(config.get(key) != value for key, value in missing.items()):
        path.unlink(missing_ok=True)  # a copy may be read-only
        write_json(path, {**config, **missing})
