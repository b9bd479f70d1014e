"""One record a model family: tensors, classes, tokenizers, positions, llama.cpp; facts, no behaviour."""

from gqkva_convert.architectures import bart, bert, clip, gpt2, gpt_neox, llama, opt, t5, vit
from gqkva_convert.architectures.native_tables import NATIVE, NESTED, REFUSED
from gqkva_convert.architectures.nested import TEXT, Nested, around
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

# Tables written by hand; those that are generated are in `NATIVE`.
FAMILIES: dict[str, Family] = {
    value.model_type: value
    for table in _TABLES
    for name, value in vars(table).items()
    if isinstance(value, Family) and not name.startswith("_")
}

__all__ = [
    "FAMILIES",
    "NATIVE",
    "NESTED",
    "NEVER",
    "REFUSED",
    "TEXT",
    "Attention",
    "Bias",
    "Family",
    "HeadBias",
    "HeadNorm",
    "Inputs",
    "Key",
    "Nested",
    "Projection",
    "Quotient",
    "Rotary",
    "around",
    "name_pattern",
]
