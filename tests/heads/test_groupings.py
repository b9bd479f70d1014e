"""Groupings: which heads merge, and in which order they are stored."""

from __future__ import annotations

from itertools import combinations
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gqkva_convert.heads import (
    ROLES,
    HeadLayout,
    Variant,
    divisors,
    merged_groups,
    neighbour_order,
    random_order,
    without_reordering,
)

properties = settings(max_examples=25, deadline=None)
seeds = st.text(max_size=12)


@st.composite
def conversions(draw: st.DrawFn) -> tuple[HeadLayout, HeadLayout]:
    """A source and a target that a variant gives it: GQA from any source, GKVA and GQKVA from MHA."""
    stored = draw(st.integers(1, 16))
    size = draw(st.integers(1, 4))
    source = HeadLayout.gqa(stored * size, stored, draw(st.integers(1, 9)))
    part = draw(st.sampled_from(divisors(stored)))
    variants = [Variant(None, part)]
    if size == 1:
        variants += [Variant(part, None), Variant(part, stored // part)]
    return source, draw(st.sampled_from(variants)).layout(source)


@properties
@given(conversion=conversions(), seed=seeds)
def test_a_random_order_loses_no_head(conversion: tuple[HeadLayout, HeadLayout], seed: str) -> None:
    """An order that is no permutation would drop a head's weights in silence."""
    source, target = conversion
    assert sorted(random_order(source, target, seed)) == list(range(source.num_attention_heads))


@properties
@given(conversion=conversions(), seed=seeds)
def test_heads_that_share_a_key_stay_together_and_in_order(
    conversion: tuple[HeadLayout, HeadLayout], seed: str
) -> None:
    """Their key/value head exists once; torn apart, the group could not be stored."""
    source, target = conversion
    order = random_order(source, target, seed)
    size = source.num_attention_heads // source.num_key_heads
    for start in range(0, len(order), size):
        group = order[start : start + size]
        assert len({source.key[head] for head in group}) == 1
        assert list(group) == sorted(group)


@properties
@given(conversion=conversions(), seed=seeds)
def test_source_groups_land_in_one_target_group(conversion: tuple[HeadLayout, HeadLayout], seed: str) -> None:
    """Heads that read one key/value head in the source must read one in the target."""
    source, target = conversion
    order = random_order(source, target, seed)
    for role in ("key", "value"):
        reads: dict[int, set[int]] = {}
        for place, head in enumerate(order):
            reads.setdefault(source.key[head], set()).add(target.stored_heads(role)[place])
        assert all(len(stored) == 1 for stored in reads.values())


@properties
@given(conversion=conversions(), seed=seeds)
def test_a_seed_always_gives_the_same_order(conversion: tuple[HeadLayout, HeadLayout], seed: str) -> None:
    """A resumed run or a second machine must merge the same heads."""
    source, target = conversion
    assert random_order(source, target, seed) == random_order(source, target, seed)


def test_the_order_of_a_seed_is_the_same_everywhere() -> None:
    """Text seeds do not go through Python's salted hash; two processes must agree on what merges."""
    heads = list(range(6))
    Random("7/self/3").shuffle(heads)
    groups = sorted([sorted(heads[:2]), sorted(heads[2:4]), sorted(heads[4:])])
    order = random_order(HeadLayout.mha(6, 4), HeadLayout.gqa(6, 3, 4), "7/self/3")
    assert list(order) == [head for group in groups for head in group]


def test_different_seeds_deal_differently() -> None:
    """Each layer is seeded by its name; if that did not matter all layers would be grouped alike."""
    source, target = HeadLayout.mha(20, 4), HeadLayout.gqa(20, 5, 4)
    orders = {random_order(source, target, f"0/self/{layer}") for layer in range(7)}
    assert len(orders) == 7


@properties
@given(heads=st.integers(1, 20), seed=seeds)
def test_nothing_to_merge_means_nothing_moves(heads: int, seed: str) -> None:
    """With every key/value head kept, a random order could only make needless work."""
    source = HeadLayout.mha(heads, 5)
    assert random_order(source, source, seed) == neighbour_order(source)


@properties
@given(heads=st.integers(1, 30))
def test_neighbours_stay_where_they_are(heads: int) -> None:
    """The papers' grouping moves nothing, so untouched tensors stay plain copies."""
    assert neighbour_order(HeadLayout.mha(heads, 5)) == tuple(range(heads))


@properties
@given(conversion=conversions(), seed=seeds)
def test_without_reordering_every_head_has_the_same_partners(
    conversion: tuple[HeadLayout, HeadLayout], seed: str
) -> None:
    """Families with position-bound heads must get the merge that was asked for, only stored otherwise."""
    source, target = conversion
    order = random_order(source, target, seed)
    stays = without_reordering(order, target)
    for role in ROLES:
        before, after = target.stored_heads(role), stays.stored_heads(role)
        for one, other in combinations(range(len(order)), 2):
            assert (after[order[one]] == after[order[other]]) == (before[one] == before[other])


@properties
@given(conversion=conversions(), seed=seeds)
def test_without_reordering_the_shape_is_kept(conversion: tuple[HeadLayout, HeadLayout], seed: str) -> None:
    """The tensors have the sizes that were planned, and stored heads are numbered as they are first read."""
    source, target = conversion
    stays = without_reordering(random_order(source, target, seed), target)
    assert stays.head_dim == target.head_dim
    for role in ROLES:
        assert len(set(stays.stored_heads(role))) == len(set(target.stored_heads(role)))
        assert list(dict.fromkeys(stays.stored_heads(role))) == sorted(set(stays.stored_heads(role)))


@properties
@given(conversion=conversions())
def test_an_order_that_moves_nothing_changes_no_layout(conversion: tuple[HeadLayout, HeadLayout]) -> None:
    """Neighbour grouping must give a stock layout to every family alike."""
    source, target = conversion
    assert without_reordering(neighbour_order(source), target) == target


def test_a_head_that_only_added_heads_read_repeats_the_first() -> None:
    """Exports add attention heads that count for nothing; their stored head must hold finite weights."""
    assert merged_groups((1, 0, None), (0, 1), (0, 0, 1)) == ((1, 0), (0,))
