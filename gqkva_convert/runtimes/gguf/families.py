"""The families that llama.cpp runs, by ``model_type``."""

from __future__ import annotations

from dataclasses import replace

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.architectures.gguf import RuntimeFamily
from gqkva_convert.source.deci import DECI

RUNTIME_FAMILIES: dict[str, RuntimeFamily] = {
    name: family.gguf for name, family in FAMILIES.items() if family.gguf is not None
}
# A Llama without biases whose layers have numbers of key/value heads of their own.
RUNTIME_FAMILIES[DECI] = replace(RUNTIME_FAMILIES["llama"], architecture=DECI, biases=())
