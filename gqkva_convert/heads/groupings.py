"""Groupings: which source heads become one stored head; those that need neither weights nor data.

A grouping is an order of the attention heads: reordered by it, the heads that will share a stored
head are where the target layout expects them. Heads are interchangeable as long as query, key,
value and output projection move together, so any equal-size grouping can be stored in the order
that stock grouped attention reads.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gqkva_convert.heads.layout import ROLES, HeadLayout


@dataclass(frozen=True)
class Grouping:
    """One way to choose which heads become one.

    Attributes:
        is_searched: Whether it depends on weights or data.
        needs_data: Whether it needs calibration data.
        takes_grids: Whether it can assign heads to a grid whose queries are shared too.
        is_equal: Whether all groups of a block are of one size.
        is_aligned: Whether heads are compared in the best common frame, rather than as they are.
        spans_layers: Whether it chooses the groups of all layers together.
    """

    is_searched: bool = True
    needs_data: bool = False
    takes_grids: bool = False
    is_equal: bool = True
    is_aligned: bool = True
    spans_layers: bool = False


# All groupings, as `--grouping` names them.
GROUPINGS = {
    "neighbour": Grouping(is_searched=False, takes_grids=True),
    "random": Grouping(is_searched=False, takes_grids=True),
    "weights": Grouping(takes_grids=True),
    "activations": Grouping(needs_data=True, takes_grids=True),
    "activations-raw": Grouping(needs_data=True, takes_grids=True, is_aligned=False),
    "asym": Grouping(needs_data=True, is_equal=False),
    "asym-raw": Grouping(needs_data=True, is_equal=False, is_aligned=False),
    "evolution": Grouping(is_equal=False, spans_layers=True),
    "evolution-ec": Grouping(spans_layers=True),
    "key-norm": Grouping(is_equal=False),
    "loss": Grouping(takes_grids=True),
}


def merged_groups(
    order: Sequence[int | None], source: Sequence[int], target: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Return, for each stored head of the result, the source's stored heads that it is merged from.

    Args:
        order: Source attention head of each attention head of the result; None for an added one.
        source: Stored head of each attention head of the source, for one role.
        target: Stored head of each attention head of the result, for the same role.

    Returns:
        A group for each stored head; if only added heads read it, the source's first head.
    """
    groups: list[dict[int, None]] = [{} for _ in set(target)]
    for head, stored in zip(order, target, strict=True):
        if head is not None:
            groups[stored][source[head]] = None
    return tuple(tuple(group) or (0,) for group in groups)


def neighbour_order(source: HeadLayout) -> tuple[int, ...]:
    """Return the heads in order: neighbours merge (Ainslie et al., 2023, arXiv 2305.13245, section 2)."""
    return tuple(range(source.num_attention_heads))


def random_order(source: HeadLayout, target: HeadLayout, seed: str) -> tuple[int, ...]:
    """Assign heads to the target's places at random.

    Attention heads that share a stored key/value head in the source stay together and in order, so
    that a grouped source can be grouped further.

    Args:
        source: Layout of the source block.
        target: Layout wanted, in neighbour order.
        seed: Any text; the same text gives the same order on every machine and Python version.
    """
    shared = [
        tuple(head for head, stored in enumerate(source.key) if stored == group)
        for group in range(source.num_key_heads)
    ]
    random.Random(seed).shuffle(shared)
    if target.num_query_heads == source.num_query_heads:
        per_group = source.num_key_heads // target.num_key_heads
        chunks = [sorted(shared[start : start + per_group]) for start in range(0, len(shared), per_group)]
        shared = [group for chunk in sorted(chunks) for group in chunk]
    return tuple(head for group in shared for head in group)


def without_reordering(order: tuple[int, ...], target: HeadLayout) -> HeadLayout:
    """Return the layout in which each head shares with the same heads as in ``order`` but keeps its index.

    For families whose heads are bound to their index (ALiBi slopes, relative position biases).
    """
    maps: dict[str, tuple[int, ...]] = {}
    for role in ROLES:
        stored = [0] * len(order)
        for place, head in enumerate(order):
            stored[head] = target.stored_heads(role)[place]
        first_seen = list(dict.fromkeys(stored))
        maps[role] = tuple(first_seen.index(head) for head in stored)
    return HeadLayout(maps["query"], maps["key"], maps["value"], target.head_dim)
