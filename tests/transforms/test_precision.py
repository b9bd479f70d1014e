"""Stored elements to numbers and back, held against PyTorch and against exact arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gqkva_convert.transforms.precision import STORED, decode, encode, is_finite

Array = np.ndarray[Any, Any]
properties = settings(max_examples=60, deadline=None)

ALL_BITS = np.arange(1 << 16, dtype=np.uint16)
TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
WORKING = {"F16": np.float32, "BF16": np.float32, "F32": np.float64, "F64": np.float64}


def by_torch(bits: Array, dtype: str) -> Array:
    """All 16-bit patterns as float64, as PyTorch reads them."""
    values: Array = torch.from_numpy(bits.view(np.int16)).view(TORCH[dtype]).double().numpy()
    return values


def nearest_even(value: float, dtype: str) -> int:
    """The bits nearest to a number, by comparing it with every number there is; ties go to the even bits."""
    sign = 0x8000 if np.signbit(value) else 0
    infinity = 0x7F80 if dtype == "BF16" else 0x7C00
    finite = by_torch(np.arange(infinity, dtype=np.uint16), dtype)
    size = abs(value)
    above = int(np.searchsorted(finite, size))
    if above < infinity and finite[above] == size:
        return sign | above
    low = finite[above - 1]
    # Beyond the largest number, the next one there would be is where infinity lies for rounding.
    high = finite[above] if above < infinity else 2 * low - finite[above - 2]
    # All of this is exact: 16-bit numbers have far fewer digits than the float64 they are kept in.
    middle = low + (high - low) / 2
    if size != middle:
        return sign | (above if size > middle else above - 1)
    return sign | (above if above % 2 == 0 else above - 1)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_16_bit_number_is_read_as_torch_reads_it(dtype: str) -> None:
    """All 65536 of them; numpy has no bfloat16, so its bits are shifted by hand."""
    found = decode(ALL_BITS.view(STORED[dtype]), dtype)
    assert found.dtype == np.float32
    wanted = by_torch(ALL_BITS, dtype)
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].astype(np.float64), wanted[~nan])
    np.testing.assert_array_equal(np.signbit(found), (ALL_BITS & 0x8000) != 0)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_16_bit_number_survives_a_round_trip(dtype: str) -> None:
    """A head that is merged with its equals must keep its bits; NaN need only stay NaN."""
    stored = ALL_BITS.view(STORED[dtype])
    back = encode(decode(stored, dtype), dtype).view(np.uint16)
    nan = np.isnan(by_torch(ALL_BITS, dtype))
    np.testing.assert_array_equal(back[~nan], ALL_BITS[~nan])
    assert np.isnan(by_torch(back[nan], dtype)).all()


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_wide_numbers_survive_a_round_trip(dtype: str) -> None:
    """float32 is merged in float64, and float64 in itself."""
    bits = np.random.Generator(np.random.PCG64(3)).integers(0, 256, 8 * 999, dtype=np.uint8)
    stored = bits.view(STORED[dtype])
    stored = stored[~np.isnan(stored)]
    values = decode(stored, dtype)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(encode(values, dtype), stored)


def patterns(seed: int) -> Array:
    """float32 numbers of every kind, many of them at or beside a tie between two 16-bit numbers."""
    high = np.repeat(ALL_BITS.astype(np.uint32) << 16, 5)
    low = np.tile(np.array([0x0000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32), 1 << 16)
    noise = np.random.Generator(np.random.PCG64(seed)).integers(0, 1 << 32, 99_999, dtype=np.uint32)
    return np.concatenate([high | low, noise]).view(np.float32)


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    """At every tie, beside every tie, at the infinities and among subnormal numbers."""
    values = patterns(5)
    wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    found = encode(values, "BF16")
    nan = np.isnan(values)
    np.testing.assert_array_equal(found[~nan], wanted[~nan])
    assert np.isnan(by_torch(found[nan], "BF16")).all()
    assert found.dtype == np.uint16


def test_float16_is_rounded_as_torch_rounds_it() -> None:
    """Both numpy and PyTorch each have their own rounding; they must agree."""
    values = patterns(6)
    values = values[~np.isnan(values)]
    wanted = torch.from_numpy(values).to(torch.float16).numpy()
    np.testing.assert_array_equal(encode(values, "F16").view(np.uint16), wanted.view(np.uint16))


@st.composite
def near_ties(draw: st.DrawFn) -> tuple[str, float]:
    """A float64 at, or a little beside, the middle of two neighbouring 16-bit numbers, or anywhere."""
    dtype = draw(st.sampled_from(["F16", "BF16"]))
    if draw(st.booleans()):
        return dtype, draw(st.floats(allow_nan=False))
    largest = 0x7F7F if dtype == "BF16" else 0x7BFF
    low, high = by_torch(
        np.array([(bits := draw(st.integers(0, largest - 1))), bits + 1], dtype=np.uint16), dtype
    )
    middle = low + (high - low) / 2
    nudge = draw(st.sampled_from([0, 1, -1])) * (high - low) * 2.0 ** -draw(st.integers(2, 40))
    return dtype, draw(st.sampled_from([1, -1])) * (middle + nudge)


@settings(max_examples=300, deadline=None)
@given(case=near_ties())
def test_float64_is_rounded_once(case: tuple[str, float]) -> None:
    """Rounded to float32 on the way, a number beside a tie would become the tie and fall wrongly."""
    dtype, value = case
    found = encode(np.array([value]), dtype).view(np.uint16)
    assert hex(found[0]) == hex(nearest_even(value, dtype))


def test_the_oracle_knows_a_number_that_two_roundings_get_wrong() -> None:
    """1 + 2^-8 lies between two bfloat16 numbers; a hair above it belongs to the upper one."""
    value = 1 + 2.0**-8 + 2.0**-40
    twice = torch.tensor(np.float32(value)).to(torch.bfloat16).double().item()
    assert twice == 1.0
    assert by_torch(encode(np.array([value]), "BF16"), "BF16")[0] == 1 + 2.0**-7


@properties
@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=9))
def test_float64_to_float32_is_as_torch_does_it(values: list[float]) -> None:
    """Only once, and too large numbers become infinite without a warning."""
    array = np.array(values)
    wanted = torch.from_numpy(array).to(torch.float32).numpy()
    np.testing.assert_array_equal(encode(array, "F32").view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("working", [np.float32, np.float64])
def test_infinity_and_nan_stay_what_they_are(dtype: str, working: type[np.floating[Any]]) -> None:
    """A NaN that became a number would hide a damaged checkpoint."""
    encoded = encode(np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0], dtype=working), dtype)
    values = decode(encoded, dtype)
    assert values[0] == np.inf
    assert values[1] == -np.inf
    assert np.isnan(values[2:4]).all()
    assert list(np.signbit(values[4:])) == [False, True]
    assert [is_finite(encoded[place : place + 1], dtype) for place in range(6)] == [False] * 4 + [True] * 2


def test_a_signalling_nan_is_read_in_silence() -> None:
    """A damaged float32 weight is reported once, by name, not by a numpy warning above it."""
    assert np.isnan(decode(np.array([0x7F800001], dtype=np.uint32).view(np.float32), "F32")).all()


@pytest.mark.parametrize(("dtype", "large"), [("F16", 65520.0), ("BF16", 3.3961776e38), ("F32", 3.5e38)])
def test_too_large_numbers_become_infinite_in_silence(dtype: str, large: float) -> None:
    """The caller finds them by `is_finite` and names the tensor; a numpy warning would not."""
    encoded = encode(np.array([large, -large, 1.0]), dtype)
    assert list(decode(encoded, dtype)) == [np.inf, -np.inf, 1.0]
    assert not is_finite(encoded, dtype)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_finite_means_finite_for_every_16_bit_number(dtype: str) -> None:
    """One missed pattern would let a damaged weight through."""
    found = [
        is_finite(ALL_BITS[place : place + 1].view(STORED[dtype]), dtype) for place in range(0, 1 << 16, 7)
    ]
    assert found == list(np.isfinite(by_torch(ALL_BITS, dtype))[::7])


@pytest.mark.parametrize("dtype", STORED)
def test_one_bad_number_among_many_is_found(dtype: str) -> None:
    """Weights have a hundred million elements; one is enough to spoil a head."""
    values = np.ones((5, 7), dtype=WORKING[dtype])
    assert is_finite(encode(values, dtype), dtype)
    values[3, 2] = np.nan
    assert not is_finite(encode(values, dtype), dtype)


@pytest.mark.parametrize("dtype", STORED)
def test_the_shape_is_kept(dtype: str) -> None:
    """Heads are put back where they came from."""
    for shape in ((0,), (3, 5), (2, 0, 4), (7, 1, 2)):
        values = np.arange(np.prod(shape), dtype=WORKING[dtype]).reshape(shape)
        encoded = encode(values, dtype)
        assert (encoded.shape, encoded.dtype) == (shape, STORED[dtype])
        np.testing.assert_array_equal(decode(encoded, dtype), values)


@pytest.mark.parametrize("dtype", STORED)
def test_transposed_numbers_are_encoded_in_their_order(dtype: str) -> None:
    """The output projection's heads are columns."""
    values = np.arange(15, dtype=np.float64).reshape(3, 5).T
    np.testing.assert_array_equal(decode(encode(values, dtype), dtype), values)
    np.testing.assert_array_equal(decode(encode(values.astype(np.float32), dtype), dtype), values)
