"""Tokenizer and processor files of a grouped model name their classes, since its ``model_type`` cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json, write_json

# As transformers' own tables give them for the stock model types; Llama's folders name theirs.
_TOKENIZERS = {
    "bart": "RobertaTokenizer",
    "bert": "BertTokenizer",
    "clip": "CLIPTokenizer",
    "distilbert": "BertTokenizer",
    "gemma": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "mistral": "TokenizersBackend",
    "olmo": "GPTNeoXTokenizer",
    "olmo2": "TokenizersBackend",
    "opt": "GPT2Tokenizer",
    "phi": "GPT2Tokenizer",
    "phi3": "TokenizersBackend",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "stablelm": "TokenizersBackend",
    "starcoder2": "GPT2Tokenizer",
    "t5": "T5Tokenizer",
    "whisper": "WhisperTokenizer",
}
_IMAGE_PROCESSORS = {
    "clip": "CLIPImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "siglip": "SiglipImageProcessor",
    "vit": "ViTImageProcessor",
}
_FEATURE_EXTRACTORS = {"whisper": "WhisperFeatureExtractor"}
_PROCESSORS = {"clip": "CLIPProcessor", "siglip": "SiglipProcessor", "whisper": "WhisperProcessor"}

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


def name_classes(folder: Path, model_type: str) -> None:
    """Write into a folder's tokenizer and processor configurations the classes they leave to ``model_type``.

    Args:
        folder: A grouped checkpoint being written.
        model_type: The stock model type.
    """
    tokenizer = folder / "tokenizer_config.json"
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        _name(tokenizer, {"tokenizer_class": _TOKENIZERS.get(model_type)}, create=True)
    image_processor = _IMAGE_PROCESSORS.get(model_type)
    names = {"feature_extractor_type": _FEATURE_EXTRACTORS.get(model_type)}
    if image_processor:
        names = {"image_processor_type": image_processor}
    names["processor_class"] = _PROCESSORS.get(model_type)
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
