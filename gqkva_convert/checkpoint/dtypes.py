"""Element types of the safetensors format."""

from __future__ import annotations

import math
from collections.abc import Iterable

# Bits per element; sub-byte types exist in newer files and are read as facts, never merged.
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

# Dtypes whose heads can be merged, and their names in Hugging Face configurations.
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
FLOAT_BY_NAME = {name: dtype for dtype, name in FLOATS.items()}


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor; sub-byte types are packed and rounded up."""
    return (math.prod(shape) * BITS[dtype] + 7) // 8


def unknown_dtype(name: str, known: Iterable[str] = FLOAT_BY_NAME, where: str = "") -> str:
    """Say that there is no such dtype, and which there are."""
    return f"no dtype {name!r}{where}; choose one of {', '.join(known)}"
