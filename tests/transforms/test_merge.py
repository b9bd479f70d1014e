"""Merge rules: shares, mixtures and fresh heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqkva_convert.transforms.merge import RULES, fresh_head, merge
from gqkva_convert.transforms.precision import decode, encode

Array = np.ndarray[Any, Any]
properties = settings(max_examples=60, deadline=None)

MIXING = ["mean", "first", "norm-weighted"]
UNSIGNED = {"F16": np.uint16, "BF16": np.uint16, "F32": np.uint32, "F64": np.uint64}
STORED_AS = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "F64": np.float64}
# Numbers whose sum over a group of 200 stays within the type they are merged in.
MODERATE = {"F16": 65504.0, "BF16": 1e36, "F32": 3e38, "F64": 1e150}


def stored_heads(seed: int, dtype: str, shape: tuple[int, int] = (3, 5)) -> Array:
    """Bits of any finite numbers of moderate size, negative zero and subnormal ones among them."""
    generator = np.random.Generator(np.random.PCG64(seed))
    unsigned = UNSIGNED[dtype]
    bits = generator.integers(0, np.iinfo(unsigned).max, shape, dtype=unsigned, endpoint=True)
    bits[0, 0] = np.iinfo(unsigned).max // 2 + 1  # -0.0
    bits[1, 0] = 1  # the smallest number
    stored = bits.view(STORED_AS[dtype])
    too_large = ~(np.abs(decode(stored, dtype)) <= MODERATE[dtype])
    stored[too_large] = 0
    return stored


@properties
@given(
    rule=st.sampled_from(MIXING),
    dtype=st.sampled_from(["F16", "BF16", "F32"]),
    size=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_equal_heads_merge_to_the_same_bytes(rule: str, dtype: str, size: int, seed: int) -> None:
    """Whatever the group's size: heads that agree lose nothing, on which every lossless test rests."""
    stored = stored_heads(seed, dtype)
    heads = [decode(stored, dtype) for _ in range(size)]
    merged = merge(heads, RULES[rule].shares(heads))
    assert encode(merged, dtype).tobytes() == stored.tobytes()


@properties
@given(rule=st.sampled_from(MIXING), size=st.sampled_from([1, 2]), seed=st.integers(0, 2**32))
def test_equal_float64_heads_merge_to_the_same_bytes_in_pairs(rule: str, size: int, seed: int) -> None:
    """float64 has no wider type to be summed in; a sum of two is exact all the same."""
    stored = stored_heads(seed, "F64")
    heads = [stored.copy() for _ in range(size)]
    assert merge(heads, RULES[rule].shares(heads)).tobytes() == stored.tobytes()


@pytest.mark.parametrize("rule", ["mean", "norm-weighted"])
def test_equal_float64_heads_merge_to_the_same_bytes(rule: str) -> None:
    """The promise of `merge` names no exception for float64."""
    heads = [np.full((3, 5), 0.1) for _ in range(10)]
    assert merge(heads, RULES[rule].shares(heads)).tobytes() == heads[0].tobytes()


@pytest.mark.parametrize("rule", ["mean", "norm-weighted"])
def test_equal_heads_of_huge_bfloat16_merge_to_the_same_bytes(rule: str) -> None:
    """bfloat16 reaches as far as float32, so a sum of two heads can leave both."""
    stored = np.full((3, 5), 0x7F40, dtype=np.uint16)  # 2.55e38
    heads = [decode(stored, "BF16") for _ in range(2)]
    assert encode(merge(heads, RULES[rule].shares(heads)), "BF16").tobytes() == stored.tobytes()


heads_of_any_size = st.tuples(
    st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([0.0, 1e-30, 1.0, 1e30])
)


def random_heads(case: tuple[int, int, float], working: Any = np.float32) -> list[Array]:
    size, seed, scale = case
    generator = np.random.Generator(np.random.PCG64(seed))
    return [
        (generator.standard_normal((4, 3)) * scale * (place % 3)).astype(working) for place in range(size)
    ]


@properties
@given(rule=st.sampled_from(sorted(RULES)), case=heads_of_any_size)
def test_shares_sum_to_one(rule: str, case: tuple[int, int, float]) -> None:
    """Otherwise merging would also scale; all-zero heads must not divide by zero."""
    heads = random_heads(case)
    shares = RULES[rule].shares(heads)
    assert shares.shape == (len(heads),)
    assert (shares >= 0).all()
    assert shares.sum() == pytest.approx(1, abs=1e-12)


@properties
@given(
    rule=st.sampled_from(MIXING), case=heads_of_any_size, working=st.sampled_from([np.float32, np.float64])
)
def test_a_merged_head_is_the_weighted_sum(rule: str, case: tuple[int, int, float], working: Any) -> None:
    """By the definition, in float64 and with every share, zero ones too."""
    heads = random_heads(case, working)
    shares = RULES[rule].shares(heads)
    merged = merge(heads, shares)
    assert (merged.dtype, merged.shape) == (working, (4, 3))
    wanted = sum(share * head.astype(np.float64) for share, head in zip(shares, heads, strict=True))
    np.testing.assert_allclose(merged, wanted, rtol=1e-5, atol=1e-6 * case[2])


@properties
@given(rule=st.sampled_from(MIXING), case=heads_of_any_size)
def test_merging_leaves_the_source_alone(rule: str, case: tuple[int, int, float]) -> None:
    """The same heads are read again for biases and norms."""
    heads = random_heads(case)
    before = [head.copy() for head in heads]
    for head in heads:
        head.flags.writeable = False
    merge(heads, RULES[rule].shares(heads))
    np.testing.assert_array_equal(heads, before)


def test_the_mean_is_exact_where_it_can_be() -> None:
    """Small whole numbers leave rounding no excuse."""
    heads = [
        np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32),
        np.array([[3, 2, 0], [0, -5, 7]], dtype=np.float32),
    ]
    np.testing.assert_array_equal(merge(heads, RULES["mean"].shares(heads)), [[2, 2, 1.5], [2, 0, 6.5]])


def test_first_takes_the_first_head_bit_for_bit() -> None:
    """Not a sum with zeros: minus zero stays, and a huge or infinite neighbour does not matter."""
    head = np.array([[-0.0, 1e-45, 3.4e38]], dtype=np.float32)
    other = np.array([[np.inf, np.nan, 3.4e38]], dtype=np.float32)
    heads = [head, other, other]
    assert list(RULES["first"].shares(heads)) == [1, 0, 0]
    assert merge(heads, RULES["first"].shares(heads)).tobytes() == head.tobytes()


def test_norm_weighted_follows_the_norms() -> None:
    """Norms 3, 1 and 4 give shares 3/8, 1/8 and 4/8; entries of a head count together."""
    heads = [
        np.array([[3.0, 0.0]], dtype=np.float32),
        np.array([[0.6, -0.8]], dtype=np.float64).astype(np.float32),
        np.array([[0.0, -4.0]], dtype=np.float32),
    ]
    shares = RULES["norm-weighted"].shares(heads)
    np.testing.assert_allclose(shares, [3 / 8, 1 / 8, 4 / 8], rtol=1e-7)
    np.testing.assert_allclose(merge(heads, shares), [[9 / 8 + 0.6 / 8, -0.8 / 8 - 2]], rtol=1e-6)


def test_norms_of_large_heads_do_not_overflow() -> None:
    """The square of a float32 need not be a float32."""
    heads = [np.full((5, 2), 3e30, dtype=np.float32), np.full((5, 2), 1e30, dtype=np.float32)]
    np.testing.assert_allclose(RULES["norm-weighted"].shares(heads), [0.75, 0.25], rtol=1e-6)


def test_a_zero_head_has_no_say_by_norm() -> None:
    """Pruned heads are zeros; half of nothing would halve the others."""
    heads = [np.zeros((2, 3), dtype=np.float32), np.full((2, 3), 0.3, dtype=np.float32)]
    assert merge(heads, RULES["norm-weighted"].shares(heads)).tobytes() == heads[1].tobytes()


def test_rules_say_what_they_need() -> None:
    """A bias is merged by its weights' shares only where the rule says that it reads them."""
    generator = np.random.Generator(np.random.PCG64(4))
    one, other = ([generator.standard_normal((2, 3)) for _ in range(5)] for _ in range(2))
    for name, rule in RULES.items():
        assert rule.name == name
        same = np.array_equal(rule.shares(one), rule.shares(other))
        assert same != rule.reads_weights
    assert [name for name, rule in RULES.items() if rule.starts_afresh] == ["random"]


def group(
    scales: tuple[float, ...], shape: tuple[int, int] = (64, 96), working: Any = np.float32
) -> list[Array]:
    generator = np.random.Generator(np.random.PCG64(8))
    return [(generator.standard_normal(shape) * scale).astype(working) for scale in scales]


@pytest.mark.parametrize("working", [np.float32, np.float64])
def test_a_fresh_head_has_the_scale_of_those_it_replaces(working: Any) -> None:
    """Too small it would be silent, too large it would drown the others; 6144 numbers tell which."""
    heads = group((0.02, 0.05, 0.11), working=working)
    fresh = fresh_head(heads, "0/h.3.weight/1").astype(np.float64)
    wanted = np.sqrt(np.mean(np.square(np.array(heads, dtype=np.float64))))
    assert np.sqrt(np.mean(np.square(fresh))) == pytest.approx(wanted, rel=0.03)
    assert abs(fresh.mean()) < 0.05 * wanted
    assert fresh_head(heads, "0/h.3.weight/1").dtype == working
    assert fresh.shape == (64, 96)


@properties
@given(seed=st.text(st.characters(exclude_categories=["Cs"]), max_size=30), size=st.integers(1, 5))
def test_a_seed_always_gives_the_same_head(seed: str, size: int) -> None:
    """A resumed or repeated conversion must write the same bytes."""
    heads = group((0.3,) * size, shape=(3, 4))
    assert fresh_head(heads, seed).tobytes() == fresh_head([head.copy() for head in heads], seed).tobytes()


def test_every_seed_gives_another_head() -> None:
    """Heads and layers are seeded by their names; were they equal they would be one."""
    heads = group((0.3, 0.4), shape=(3, 4))
    seeds = [
        f"{seed}/h.{layer}.weight/{place}" for seed in (0, 1) for layer in range(11) for place in range(3)
    ]
    assert len({fresh_head(heads, seed).tobytes() for seed in seeds}) == len(seeds)


def test_a_fresh_head_knows_only_the_scale_of_the_old_ones() -> None:
    """That is what makes it the control experiment: the same draw, stretched."""
    heads = group((0.25, 0.5), shape=(5, 7))
    twice = [2 * head for head in heads]
    np.testing.assert_array_equal(fresh_head(twice, "s"), 2 * fresh_head(heads, "s"))
    np.testing.assert_array_equal(fresh_head([-head[::-1] for head in heads], "s"), fresh_head(heads, "s"))


def test_zero_heads_are_replaced_by_zeros() -> None:
    """There is no scale to take over, and no NaN to make."""
    assert not fresh_head([np.zeros((2, 3), dtype=np.float32)] * 4, "s").any()
