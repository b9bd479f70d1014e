"""A whole block merged in float32, as 16-bit weights are: as good as in float64, to rounding."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gqkva_convert.heads import HeadLayout
from gqkva_convert.transforms.blocks import HeadMerge, Heads, InputMoments, merge_heads
from gqkva_convert.transforms.closed_form import inner_products
from gqkva_convert.transforms.precision import decode, encode
from gqkva_convert.transforms.rotary_averages import make_turning

# A quarter of the key/value heads; partial rotary positions, so that planes and still features both count.
HEADS, HEAD_DIM, INPUTS, HIDDEN = 8, 16, 300, 310
SOURCE = HeadLayout.gqa(HEADS, HEADS, HEAD_DIM)
FIRST, SECOND = tuple(range(4)), tuple(range(4, 8))
TURNING = make_turning(HEAD_DIM, list(FIRST), list(SECOND), 0.1 ** np.arange(4), 512)
NO_DATA = InputMoments(None, None)
TARGETS = {"GQA": HeadLayout.gqa(HEADS, 2, HEAD_DIM), "GQKVA": HeadLayout.gqkva(2, 4, HEAD_DIM)}

Array = NDArray[np.float64]
SourceHeads = dict[str, NDArray[np.float32]]


def stored(values: Array, dtype: str) -> NDArray[np.float32]:
    """The numbers that a checkpoint of 16-bit weights holds, decoded."""
    return decode(encode(values, dtype), dtype)


def source_heads(kind: str, dtype: str = "BF16") -> SourceHeads:
    random = np.random.default_rng(0)
    counts = {"query": INPUTS, "key": INPUTS, "value": INPUTS, "output": HIDDEN}
    heads = {role: random.standard_normal((HEADS, HEAD_DIM, size)) for role, size in counts.items()}
    for role, found in heads.items():
        if kind == "scales":  # features from 1 to 1/1000 of each other
            found *= np.logspace(0, -3, HEAD_DIM)[random.permutation(HEAD_DIM)][:, None]
        elif kind == "dependent":  # the second half repeats the first, to a hundredth
            found[:, HEAD_DIM // 2 :] = found[:, : HEAD_DIM // 2] + 0.01 * found[:, HEAD_DIM // 2 :]
        elif kind == "alike":  # heads that differ little from their neighbours
            found[:] = found[:1] + 0.01 * found
        elif kind == "deficient":  # only three directions, and a dead head
            found[:] = random.standard_normal((HEADS, HEAD_DIM, 3)) @ found[:, :3]
            found[1] = 0
        elif kind == "narrow":  # all heads in the same few directions: the others are rounding alone
            found[:] = random.standard_normal((HEADS, HEAD_DIM, 5)) @ found[0, :5]
        elif kind == "outliers" and role != "output":  # a few inputs of huge weight
            found[:, :, :3] *= 100
    return {role: stored(found, dtype) for role, found in heads.items()}


def head_merge(target: HeadLayout, *, has_bias: bool = False) -> HeadMerge:
    rules = [("closed-form",) * (1 + max(target.stored_heads(role))) for role in ("key", "value")]
    return HeadMerge(SOURCE, target, tuple(range(HEADS)), *rules, FIRST, SECOND, TURNING, has_bias=has_bias)


def losses(target: HeadLayout, heads: SourceHeads, found: Heads) -> tuple[float, float]:
    """What the closed forms minimise, over all heads and relative to the source's energy, in float64."""
    wide = {role: part.astype(np.float64) for role, part in heads.items()}
    totals = np.zeros((2, 2))
    for head in range(HEADS):
        query, key, value, output = (wide[role][head] for role in ("query", "key", "value", "output"))
        near_query, near_key, near_value = (
            found[role, target.stored_heads(role)[head]].astype(np.float64)
            for role in ("query", "key", "value")
        )
        weight = np.sqrt(np.vdot(value @ value.T, output @ output.T))
        energy, error = (
            np.vdot(query @ query.T, TURNING.average(key @ key.T)),
            np.vdot(near_query @ near_query.T, TURNING.average(near_key @ near_key.T))
            - 2 * np.vdot(near_query @ query.T, TURNING.average(near_key @ key.T)),
        )
        totals[0] += weight * np.array([energy + error, energy])
        outputs = value.T @ output
        merged = near_value.T @ found["output", head].astype(np.float64)
        totals[1] += [np.sum((outputs - merged) ** 2), np.sum(outputs**2)]
    return float(totals[0, 0] / totals[0, 1]), float(totals[1, 0] / totals[1, 1])


# By kind, how much larger a loss may be. Where most directions are rounding alone, rounds of queries and keys
# gain little each, and where they end depends on the last bits.
TOLERANCES = {
    "random": 1e-4,
    "scales": 1e-4,
    "dependent": 1e-4,
    "alike": 1e-4,
    "outliers": 1e-4,
    "deficient": 0.05,
    "narrow": 0.05,
}


@pytest.mark.parametrize("variant", TARGETS)
@pytest.mark.parametrize("kind", TOLERANCES)
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_float32_loses_no_more_than_float64(kind: str, variant: str, dtype: str) -> None:
    """16-bit weights leave room for float32's rounding, however badly conditioned they are."""
    target, heads = TARGETS[variant], source_heads(kind, dtype)
    one = head_merge(target)
    narrow = merge_heads(one, heads, NO_DATA, None)
    wide = merge_heads(one, {role: part.astype(np.float64) for role, part in heads.items()}, NO_DATA, None)
    assert all(head.dtype == np.float32 for head in narrow.values())
    for found, best in zip(losses(target, heads, narrow), losses(target, heads, wide), strict=True):
        assert found < best * (1 + TOLERANCES[kind]) + 1e-6


def test_merged_heads_are_those_of_float64_to_rounding() -> None:
    """Where heads are as well conditioned as random ones, not only losses but weights agree."""
    heads, one = source_heads("random"), head_merge(TARGETS["GQA"])
    narrow = merge_heads(one, heads, NO_DATA, None)
    exact = merge_heads(one, {role: part.astype(np.float64) for role, part in heads.items()}, NO_DATA, None)
    for name, head in narrow.items():
        assert head.dtype == np.float32
        assert np.linalg.norm(head - exact[name]) < 2e-5 * np.linalg.norm(exact[name]), name


def test_biases_far_larger_than_weights_do_not_hide_them() -> None:
    """Key biases of some models are a thousand times what weights add; float32 would see only them."""
    heads = source_heads("random")
    for role in ("query", "key", "value"):
        heads[role][:, :, -1] *= 3000
    narrow = merge_heads(head_merge(TARGETS["GQA"], has_bias=True), heads, NO_DATA, None)
    wide = {role: part.astype(np.float64) for role, part in heads.items()}
    exact = merge_heads(head_merge(TARGETS["GQA"]), wide, NO_DATA, None)
    for name, head in narrow.items():
        assert np.linalg.norm(head[:, :-1] - exact[name][:, :-1]) < 1e-4 * np.linalg.norm(exact[name][:, :-1])


@pytest.mark.parametrize("factor", [2.0**-70, 2.0**70])
def test_weights_whose_squares_float32_cannot_hold_merge_alike(factor: float) -> None:
    """bfloat16 reaches as far as float32; squares of its ends are infinite or nothing there."""
    rows = source_heads("random")["key"].reshape(-1, INPUTS)
    found = inner_products(rows * np.float32(factor), None)
    expected = inner_products(rows.astype(np.float64), None) * factor**2
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(expected.max()))
