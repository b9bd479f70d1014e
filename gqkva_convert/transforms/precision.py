"""Conversion between stored elements and the numbers that heads are merged in.

numpy alone, so that a conversion need not wait seconds for torch to load. 16-bit weights are merged
in float32 and float32 weights in float64, and rounded once, to nearest even: heads that are equal
stay equal to the last bit whatever the group's size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Elements as stored in the file; numpy has no bfloat16, so its bits are read as uint16.
STORED = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "F64": np.float64}


def decode(stored: Array, dtype: str) -> Array:
    """Convert stored elements to float32 (16-bit types) or float64 (float32 and float64)."""
    if dtype == "BF16":
        bits = stored.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN is found later, and named
        return stored.astype(np.float32 if dtype == "F16" else np.float64)


def encode(values: Array, dtype: str) -> Array:
    """Convert numbers to stored elements, rounded to nearest even; too large ones become infinite."""
    if dtype == "BF16":
        bits = _round_to_odd_float32(values).view(np.uint32)
        # Add half a unit of the last kept place, a little less where it is even.
        carried = bits >> 16
        carried &= 1
        carried += 0x7FFF
        carried += bits
        carried >>= 16
        rounded = carried.astype(np.uint16)
        nan = np.isnan(values)
        if nan.any():
            rounded[nan] = 0x7FC0
        return rounded
    with np.errstate(over="ignore"):
        return values.astype(STORED[dtype])


def _round_to_odd_float32(values: Array) -> Array:
    """Round float64 to float32 such that rounding again to bfloat16 rounds as if only once."""
    if values.dtype == np.float32:
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    inexact = (nearest.astype(np.float64) != values) & np.isfinite(nearest)
    if not inexact.any():
        return nearest
    # Where rounding lost something, take the neighbour of the true value whose last bit is odd.
    too_far = inexact & (np.abs(nearest.astype(np.float64)) > np.abs(values))
    bits = nearest.view(np.uint32).copy()
    bits[too_far] -= 1
    bits[inexact] |= 1
    odd: Array = bits.view(np.float32)
    return odd


def is_finite(stored: Array, dtype: str) -> bool:
    """Return whether no stored element is infinite or NaN."""
    if dtype == "BF16":
        return stored.size == 0 or int((stored & 0x7F80).max()) < 0x7F80
    return bool(np.isfinite(stored).all())
