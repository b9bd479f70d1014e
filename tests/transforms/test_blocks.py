"""A whole block merged on arrays: what it computes, rule by rule, without a model or a file."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gqkva_convert.heads import HeadLayout
from gqkva_convert.transforms.blocks import HeadMerge, Heads, InputMoments, merge_heads
from gqkva_convert.transforms.merge import GROUP_RULES
from gqkva_convert.transforms.rotary_averages import make_turning, still

# Sizes all differ; two key/value heads are left of four.
HEADS, HEAD_DIM, INPUTS, HIDDEN = 8, 6, 29, 31
SOURCE, TARGET = HeadLayout.gqa(HEADS, 4, HEAD_DIM), HeadLayout.gqa(HEADS, 2, HEAD_DIM)
ORDER = (2, 3, 6, 7, 0, 1, 4, 5)
GROUPS = ((1, 3), (0, 2))
FIRST, SECOND = (0, 1), (2, 3)
TURNING = make_turning(HEAD_DIM, list(FIRST), list(SECOND), np.array([1.0, 0.1]), 64)


def head_merge(rule: str, norm: str = "none", *, rotary: bool = True) -> HeadMerge:
    planes = (FIRST, SECOND, TURNING) if rotary else ((), (), still(HEAD_DIM))
    return HeadMerge(SOURCE, TARGET, ORDER, (rule,) * 2, (rule,) * 2, *planes, norm)  # type: ignore[arg-type]


def source_heads(seed: int = 0) -> dict[str, NDArray[np.float64]]:
    random = np.random.default_rng(seed)
    counts = {"query": HEADS, "key": 4, "value": 4}
    heads = {role: random.standard_normal((count, HEAD_DIM, INPUTS)) for role, count in counts.items()}
    return {**heads, "output": random.standard_normal((HEADS, HEAD_DIM, HIDDEN))}


def products(heads: dict[str, NDArray[np.float64]]) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """For each attention head in the result's order, its bilinear form of scores and its linear map."""
    return [
        (
            heads["query"][head].T @ heads["key"][SOURCE.key[head]],
            heads["value"][SOURCE.value[head]].T @ heads["output"][head],
        )
        for head in ORDER
    ]


def merged_products(found: Heads) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    return [
        (
            found["query", place].T @ found["key", TARGET.key[place]],
            found["value", TARGET.value[place]].T @ found["output", place],
        )
        for place in range(HEADS)
    ]


def merge(heads: dict[str, NDArray[np.float64]], one: HeadMerge) -> Heads:
    return merge_heads(one, heads, InputMoments(None, None), None)


def test_groups_and_members_name_the_same_heads() -> None:
    """A merge that mixes one head and reads another would be wrong without an error."""
    one = head_merge("mean")
    assert one.groups("key") == GROUPS
    assert one.groups("query") == tuple((head,) for head in ORDER)
    for role in ("query", "key", "value"):
        groups, stored = one.groups(role), SOURCE.stored_heads(role)
        for head, (group, member) in zip(ORDER, one.members(role), strict=True):
            assert groups[group][member] == stored[head]


@pytest.mark.parametrize("rule", GROUP_RULES)
def test_heads_that_agree_keep_scores_and_outputs(rule: str) -> None:
    """Whatever the rule, merging equal heads must not change what the block computes."""
    heads = source_heads()
    for role in ("key", "value"):
        for group in GROUPS:
            heads[role][group[1]] = heads[role][group[0]]
    for given, expected in zip(merged_products(merge(heads, head_merge(rule))), products(heads), strict=True):
        np.testing.assert_allclose(given[0], expected[0], atol=1e-4)
        np.testing.assert_allclose(given[1], expected[1], atol=1e-6)


def test_heads_in_other_bases_merge_without_loss() -> None:
    """A head and its readers may be written in any basis; only averaging in place is fooled by it."""
    heads, random = source_heads(), np.random.default_rng(1)
    for role, reader in (("key", "query"), ("value", "output")):
        for group in GROUPS:
            mix = np.eye(HEAD_DIM) + 0.5 * random.standard_normal((HEAD_DIM, HEAD_DIM))
            heads[role][group[1]] = mix @ heads[role][group[0]]
            for head in range(HEADS):
                if SOURCE.key[head] == group[1]:
                    heads[reader][head] = np.linalg.inv(mix).T @ heads[reader][head]
    expected = products(heads)
    closed = merged_products(merge(heads, head_merge("closed-form", rotary=False)))
    averaged = merged_products(merge(heads, head_merge("mean", rotary=False)))
    for part in (0, 1):
        error = [
            max(np.abs(a[part] - b[part]).max() for a, b in zip(found, expected, strict=True))
            for found in (closed, averaged)
        ]
        assert error[0] < 1e-4 < 1 < error[1]


def test_a_norm_takes_the_freedom_of_the_closed_form_away() -> None:
    """Behind a norm only signs may differ, and behind one that subtracts the mean nothing may."""
    heads = source_heads()
    means = merge(heads, head_merge("mean"))
    centred = merge(heads, head_merge("closed-form", "centred"))
    plain = merge(heads, head_merge("closed-form", "plain"))
    for stored, group in enumerate(GROUPS):
        np.testing.assert_array_equal(centred["key", stored], means["key", stored])
        one, other = (heads["key"][member] for member in group)
        for feature, found in enumerate(plain["key", stored]):
            pairs = [one[feature] + sign * other[feature] for sign in (-1, 1)]
            assert any(np.allclose(2 * np.abs(found), np.abs(pair)) for pair in pairs)
    assert not all(np.array_equal(plain["key", stored], means["key", stored]) for stored in (0, 1))


def test_rules_that_ignore_data_do_not_see_measured_moments() -> None:
    """``closed-form-weights`` is what an owner can recompute without the data."""
    heads = source_heads()
    gains, measured = InputMoments(None, None), InputMoments(*(np.linspace(0.1, 9, INPUTS),) * 2)
    for rule, is_equal in (("closed-form", False), ("closed-form-weights", True)):
        one, other = (merge_heads(head_merge(rule), heads, gains, data) for data in (None, measured))
        assert all(np.array_equal(one[name], other[name]) for name in one) is is_equal


def test_single_heads_and_dtypes_stay_as_they_are() -> None:
    """A layout that merges nothing must copy, in the dtype of the weights."""
    heads = {role: found.astype(np.float32) for role, found in source_heads().items()}
    same = HeadMerge(SOURCE, SOURCE, tuple(range(HEADS)), ("closed-form",) * 4, ("mean",) * 4)
    found = merge_heads(same, heads, InputMoments(None, None), None)
    for (role, stored), head in found.items():
        assert head.dtype == np.float32
        np.testing.assert_array_equal(head, heads[role][stored])
