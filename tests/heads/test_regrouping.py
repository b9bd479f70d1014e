"""Maps of heads before and after merging."""

from __future__ import annotations

from gqkva_convert.heads import HeadLayout, Regrouping, merged_groups


def test_groups_and_members_name_the_same_heads() -> None:
    """A merge that mixes one head and reads another would be wrong without an error."""
    source, target = HeadLayout.gqa(12, 6, 5), HeadLayout.gqa(12, 3, 5)
    order = (4, 5, 0, 1, 10, 11, 2, 3, 8, 9, 6, 7)
    regrouping = Regrouping(source, target, order)
    assert regrouping.groups("key") == ((2, 0), (5, 1), (4, 3))
    assert regrouping.groups("query") == tuple((head,) for head in order)
    for role in ("query", "key", "value"):
        groups, stored = regrouping.groups(role), source.stored_heads(role)
        for head, (group, member) in zip(order, regrouping.members(role), strict=True):
            assert groups[group][member] == stored[head]


def test_a_head_that_only_added_heads_read_repeats_the_first() -> None:
    """Exports add attention heads that count for nothing; their stored head must hold finite weights."""
    assert merged_groups((1, 0, None), (0, 1), (0, 0, 1)) == ((1, 0), (0,))
