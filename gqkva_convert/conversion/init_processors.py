"""Tokenizer and image processor of a model with fresh weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gqkva_convert.architectures import Family
from gqkva_convert.checkpoint.hub import ask_hub, is_hub_id, locate
from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.tokenizers import train_tokenizer
from gqkva_convert.errors import FamilyError


def default_config(family: Family) -> dict[str, Any]:
    """Return a family's configuration as transformers makes it."""
    import transformers

    defaults: dict[str, Any] = transformers.AutoConfig.for_model(family.model_type).to_dict()
    return defaults


def fresh_tokenizer(
    family: Family,
    given: dict[str, Any],
    defaults: dict[str, Any],
    source: str | Path | None,
    data: str | None,
) -> Any:
    """Return the requested tokenizer; None for none.

    Raises:
        FamilyError: Two were asked for, or the model reads no text.
        DataError: It does not load, or the data does not give one.
    """
    if source is None and data is None:
        return None
    if source is not None and data is not None:
        raise FamilyError("--tokenizer and --tokenizer-data: a model has one tokenizer; give one of them")
    if "vocab_size" not in defaults:
        reads = "text beside pictures" if "text_config" in defaults else "no text"
        raise FamilyError(f"{family.model_type} reads {reads}; leave the tokenizer out")
    if source is not None:
        tokenizer = _load(str(source))
    else:
        kind = "masked" if family.is_encoder else "causal" if family.decoder_start is None else "seq2seq"
        size = given.get("vocab_size", defaults["vocab_size"])
        if type(size) is not int:
            raise FamilyError(f"vocab_size is a whole number, found {size!r}")
        tokenizer = train_tokenizer(str(data), size, kind=kind)
    _check(tokenizer, given.get("vocab_size"), defaults)
    longest = given.get("max_position_embeddings", defaults.get("max_position_embeddings"))
    if isinstance(longest, int):
        tokenizer.model_max_length = longest
    return tokenizer


def _check(tokenizer: Any, vocab_size: Any, defaults: dict[str, Any]) -> None:
    """Refuse a tokenizer with tokens outside the vocabulary, or one that cannot begin a decoder."""
    if isinstance(vocab_size, int) and len(tokenizer) > vocab_size:
        raise FamilyError(
            f"the tokenizer has {len(tokenizer)} words, the configuration a vocab_size of {vocab_size}; "
            "leave vocab_size out, or give at least as much"
        )
    for name in ("pad", "eos") if defaults.get("is_encoder_decoder") else ():
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise FamilyError(
                f"the tokenizer has no {name} token, which an encoder-decoder needs; take another"
            )


def _load(source: str) -> Any:
    if not is_hub_id(source):
        return load_processor(locate(source).folder, "AutoTokenizer")
    import transformers

    return ask_hub(
        source, lambda: transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    )


def vocabulary_of(
    tokenizer: Any, family: Family, defaults: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """Return the configuration keys that a tokenizer decides; without one, a decoder's first token."""
    if tokenizer is None:
        if not defaults.get("is_encoder_decoder") or defaults.get("decoder_start_token_id") is not None:
            return {}
        return {"decoder_start_token_id": given.get("pad_token_id", defaults.get("pad_token_id"))}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    if defaults.get("is_encoder_decoder"):
        ids["decoder_start_token_id"] = ids[f"{family.decoder_start}_token_id"]
    if defaults.get("forced_eos_token_id") is not None:
        ids["forced_eos_token_id"] = ids["eos_token_id"]
    return {"vocab_size": len(tokenizer), **ids}


def image_processor(config: dict[str, Any]) -> dict[str, Any]:
    """Return settings that scale images to the model's size and pixels to -1 to 1."""
    size = config["image_size"]
    height, width = size if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        raise FamilyError(f"image_size is a whole number or two, found {size!r}")
    channels = config.get("num_channels", 3)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * channels,
        "image_std": [0.5] * channels,
    }
