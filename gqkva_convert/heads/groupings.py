"""Which source heads become one stored head, chosen without looking at the weights; names of all groupings.

A grouping is an order of the attention heads: reordered by it, the heads that will share a stored
head stand where the target layout expects them. Heads are interchangeable as long as query, key,
value and output projection move together, so any equal-size grouping can be stored in the order
that stock grouped attention reads.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from gqkva_convert.heads.layout import ROLES, HeadLayout


@dataclass(frozen=True)
class Grouping:
    """One way to choose which heads become one.

    Attributes:
        name: What the command line calls it.
        is_searched: Whether it looks at heads.
        needs_data: Whether it needs calibration data.
        takes_grids: Whether it can assign heads to a grid whose queries are shared too.
        is_equal: Whether all groups of a block are of one size.
        is_aligned: Whether heads are compared in the best common frame, rather than as they are.
        spans_layers: Whether it chooses the groups of all layers together.
    """

    name: str
    is_searched: bool = True
    needs_data: bool = False
    takes_grids: bool = False
    is_equal: bool = True
    is_aligned: bool = True
    spans_layers: bool = False


# All groupings, as `--grouping` names them.
GROUPINGS = {
    grouping.name: grouping
    for grouping in (
        Grouping("neighbour", is_searched=False, takes_grids=True),
        Grouping("random", is_searched=False, takes_grids=True),
        Grouping("weights", takes_grids=True),
        Grouping("activations", needs_data=True, takes_grids=True),
        Grouping("activations-raw", needs_data=True, takes_grids=True, is_aligned=False),
        Grouping("asym", needs_data=True, is_equal=False),
        Grouping("asym-raw", needs_data=True, is_equal=False, is_aligned=False),
        Grouping("evolution", is_equal=False, spans_layers=True),
        Grouping("evolution-ec", spans_layers=True),
        Grouping("key-norm", is_equal=False),
        Grouping("loss", takes_grids=True),
    )
}
# Those that look at heads, and whether they need data.
SEARCHED = {name: grouping.needs_data for name, grouping in GROUPINGS.items() if grouping.is_searched}
# Of these, those that can assign heads to grids.
FOR_GRIDS = tuple(name for name in SEARCHED if GROUPINGS[name].takes_grids)


def neighbour_order(source: HeadLayout) -> tuple[int, ...]:
    """Heads stay where they are: neighbours merge (Ainslie et al., 2023, arXiv 2305.13245, section 2)."""
    return tuple(range(source.num_attention_heads))


def random_order(source: HeadLayout, target: HeadLayout, seed: str) -> tuple[int, ...]:
    """Heads are dealt to the target's places at random.

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
    """The layout that gives each head the same partners as ``order`` does, but leaves it in its place.

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
