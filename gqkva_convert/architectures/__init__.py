"""One record a model family: tensors, classes, tokenizers, positions, llama.cpp; facts, no behaviour."""

from gqkva_convert.architectures import bart, bert, clip, gpt2, gpt_neox, llama, opt, t5, vit
from gqkva_convert.architectures.schema import (
    NEVER,
    Attention,
    Bias,
    Family,
    HeadBias,
    HeadNorm,
    Inputs,
    Key,
    Projection,
    Quotient,
    Rotary,
    name_pattern,
)

_TABLES = (llama, gpt2, gpt_neox, opt, bert, vit, clip, t5, bart)

FAMILIES: dict[str, Family] = {
    value.model_type: value
    for table in _TABLES
    for name, value in vars(table).items()
    if isinstance(value, Family) and not name.startswith("_")
}

__all__ = [
    "FAMILIES",
    "NEVER",
    "Attention",
    "Bias",
    "Family",
    "HeadBias",
    "HeadNorm",
    "Inputs",
    "Key",
    "Projection",
    "Quotient",
    "Rotary",
    "name_pattern",
]
