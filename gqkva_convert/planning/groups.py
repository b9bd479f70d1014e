"""Choosing the groups of every block: from statistics to layouts and orders of heads."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.errors import LayoutError
from gqkva_convert.grouping.allocation import sizes_by_norm
from gqkva_convert.grouping.costs import (
    activation_similarity,
    closed_form_loss,
    grid_loss,
    key_loss,
    loss_similarity,
    mean_cost,
    query_similarity,
)
from gqkva_convert.grouping.search import Groups, Search, neighbour_groups, search_grid
from gqkva_convert.grouping.statistics import Array, BlockStatistics, head_products
from gqkva_convert.heads import GROUPINGS, HeadLayout, without_reordering
from gqkva_convert.plans.plan import BlockPlan
from gqkva_convert.source.stored_block import StoredBlock, gain_moments, read_heads
from gqkva_convert.transforms.blocks import InputMoments
from gqkva_convert.transforms.rotary_averages import Turning

# Evaluations of a grid's loss in a search, times heads; one of 32 heads of 128 takes seconds.
_GRID_LOOKS = 1200
# Evaluations of a group's exact cost, after a search with a quick one.
_EXACT_LOOKS = 800
# The same for a search that is only drawn beside the one chosen.
_COMPARED_LOOKS = 100


@dataclass(frozen=True)
class BlockGroups:
    """The groups of one block and what they lose.

    Attributes:
        groups: Units (stored key/value heads of the source) of each group.
        loss: The closed form's loss of them, relative to the block.
        neighbour_loss: The same of as many neighbour groups.
    """

    groups: Groups
    loss: float
    neighbour_loss: float


def block_statistics(
    block: StoredBlock,
    reader: TensorReader,
    measured: InputMoments | None,
    queries: bool = False,
) -> BlockStatistics:
    """Compute inner products of a block's heads, from weights and, where there are any, measured moments.

    Raises:
        LayoutError: Its key and value heads are not shared alike.
    """
    layout = block.layout
    if layout.key != layout.value:
        raise LayoutError(
            f"{block.where}: keys and values are grouped apart; their heads cannot be regrouped"
        )
    heads = {role: found.astype(np.float64) for role, found in read_heads(block, reader).items()}
    moments = measured or gain_moments(block, reader)
    head_dim, units = layout.head_dim, layout.num_key_heads
    key_readers, value_readers = np.zeros((2, units, head_dim, head_dim))
    for head in range(layout.num_attention_heads):
        key_readers[layout.key[head]] += head_products(
            heads["query"][layout.query[head]][None], moments.query
        )
        value_readers[layout.value[head]] += heads["output"][head] @ heads["output"][head].T
    return BlockStatistics(
        head_dim,
        block.planes.first,
        block.planes.second,
        head_products(heads["key"], moments.key),
        head_products(heads["value"], moments.key),
        head_products(heads["query"], moments.query) if queries else np.zeros((0, 0)),
        key_readers,
        value_readers,
    )


def similarity(statistics: BlockStatistics, grouping: str) -> Array:
    """Return the inner products that a grouping searches by, ``(units, units)``."""
    if grouping == "loss":
        return loss_similarity(statistics)
    return activation_similarity(statistics, aligned=GROUPINGS[grouping].is_aligned)


def search_groups(
    statistics: BlockStatistics, grouping: str, count: int, seed: str, looks: int = _EXACT_LOOKS
) -> BlockGroups:
    """Search the groups of one block; ``evolution``, which spans all layers, is not among the groupings.

    Args:
        statistics: Statistics of the block.
        grouping: Name of a grouping that searches each block alone.
        count: Number of groups.
        seed: Seed of the search.
        looks: Groups whose exact cost ``loss`` may compute, which takes most of its time.
    """
    groups = _search_quickly(statistics, grouping, count, seed)
    neighbours = neighbour_groups(statistics.units, count)
    neighbour_loss = total_loss(statistics, neighbours)
    if grouping == "loss" and count not in (1, statistics.units):
        groups = _improve_by_keys(statistics, groups, seed, looks)
    loss = neighbour_loss if groups == neighbours else total_loss(statistics, groups)
    if grouping == "loss" and neighbour_loss < loss:
        groups, loss = neighbours, neighbour_loss
    return BlockGroups(groups, loss, neighbour_loss)


def _search_quickly(statistics: BlockStatistics, grouping: str, count: int, seed: str) -> Groups:
    """Search groups by the quick cost of a grouping."""
    if grouping == "key-norm":
        return _group_by_key_norm(statistics, count)
    search = Search(mean_cost(similarity(statistics, grouping)), statistics.units, seed)
    return search.equal(count) if GROUPINGS[grouping].is_equal else search.unequal(count)


def total_loss(statistics: BlockStatistics, groups: Groups) -> float:
    """Return the closed form's loss of all groups of a block, relative to the block."""
    return sum(closed_form_loss(statistics, group) for group in groups)


def compare_groupings(
    statistics: BlockStatistics,
    weights: BlockStatistics | None,
    chosen: str,
    found: BlockGroups,
    seed: str,
) -> dict[str, float]:
    """Return the closed form's loss of the groups that other groupings would give, relative to the block.

    Args:
        statistics: Statistics of the block for the chosen grouping.
        weights: The same from weights alone where ``statistics`` are measured; else None.
        chosen: The grouping chosen.
        found: Its groups.
        seed: Seed of the searches.

    Returns:
        By grouping, ``neighbour`` and the chosen one included; ``loss`` is searched less long than if chosen.
    """
    count = len(found.groups)
    losses = {"neighbour": found.neighbour_loss}
    for grouping in ("weights",) if weights is None else ("weights", "activations", "asym"):
        if grouping != chosen:
            seen = weights if weights is not None and grouping == "weights" else statistics
            losses[grouping] = total_loss(statistics, _search_quickly(seen, grouping, count, seed))
    if chosen != "loss":
        losses["loss"] = search_groups(statistics, "loss", count, seed, _COMPARED_LOOKS).loss
    return losses | {chosen: found.loss}


def _improve_by_keys(statistics: BlockStatistics, groups: Groups, seed: str, allowed: int) -> Groups:
    """Improve groups by swaps that lower the keys' own residual, computed at most ``allowed`` times."""
    looks = 0

    def cost(group: tuple[int, ...]) -> float:
        nonlocal looks
        looks += 1
        return key_loss(statistics, group) if looks <= allowed else np.inf

    return Search(cost, statistics.units, seed).improve(groups, moves=False)


def _group_by_key_norm(statistics: BlockStatistics, count: int) -> Groups:
    """Group neighbours, sizes in proportion to the norms of the keys they would have (KDGQA, frozen)."""
    units, head_dim = statistics.units, statistics.head_dim
    energies = np.diagonal(statistics.keys).reshape(units, head_dim).sum(axis=1)
    norms = np.array([np.sqrt(energies[list(group)]).mean() for group in neighbour_groups(units, count)])
    places = iter(range(units))
    return tuple(tuple(next(places) for _ in range(size)) for size in sizes_by_norm(norms, units))


def block_plan(block: StoredBlock, groups: Groups) -> BlockPlan:
    """Return the plan of a block whose units merge by groups; in stock order if they are of equal size."""
    layout = block.layout
    readers = {
        unit: [head for head, stored in enumerate(layout.key) if stored == unit]
        for unit in range(layout.num_key_heads)
    }
    order = tuple(head for group in groups for unit in group for head in readers[unit])
    sizes = [sum(len(readers[unit]) for unit in group) for group in groups]
    target = HeadLayout.unequal(sizes, layout.head_dim)
    if block.keeps_order:
        target, order = without_reordering(order, target), tuple(range(len(order)))
    return BlockPlan(*block.place, layout, target, order)


def grid_plan(
    block: StoredBlock,
    statistics: BlockStatistics,
    grouping: str,
    target: HeadLayout,
    seed: str,
) -> tuple[BlockPlan, float, float]:
    """Plan a block whose queries are shared too: heads assigned to a grid (GQKVA) or to rows (GKVA).

    A quick search proposes. Under ``loss``, the closed form's loss chooses the better of the proposal and the
    heads in order, then improves it by swaps, with at most `_GRID_LOOKS` evaluations.

    Returns:
        The plan of the block, its closed-form loss, and that of the heads in order.
    """
    rows, turning = target.num_query_heads, block.planes.turning()
    across = mean_cost(query_similarity(statistics))
    if target.num_key_heads == target.num_attention_heads:
        groups = Search(across, statistics.units, seed).equal(rows)
        proposal = tuple(head for group in groups for head in group)
    else:
        down = mean_cost(similarity(statistics, grouping))
        grid = search_grid(across, down, rows, target.num_key_heads, seed)
        proposal = tuple(head for row in grid for head in row)

    def loss(order: tuple[int, ...]) -> float:
        return grid_loss(statistics, order, target.query, target.key, turning)

    order, in_place = proposal, tuple(range(statistics.units))
    neighbour_loss = loss(in_place)
    if grouping == "loss":
        looks = _GRID_LOOKS // statistics.units
        order = _improve_by_swaps(min((in_place, proposal), key=loss), loss, looks, seed)
    found = loss(order)
    if block.keeps_order:
        target, order = without_reordering(order, target), in_place
    plan = BlockPlan(*block.place, block.layout, target, order)
    return plan, found, neighbour_loss


def weigh_grid(statistics: BlockStatistics, plan: BlockPlan, role: str, turning: Turning) -> BlockGroups:
    """Compute the closed form's loss of a grid, and of the heads in order.

    Args:
        statistics: Statistics of the block, its queries included.
        plan: Layouts and order of its heads.
        role: Role whose groups are returned.
        turning: Averages of rotary positions over distances.
    """
    in_place, target = tuple(range(statistics.units)), plan.target
    order = tuple(head for head in plan.order if head is not None)
    losses = [grid_loss(statistics, tried, target.query, target.key, turning) for tried in (order, in_place)]
    return BlockGroups(plan.groups(role), *losses)


def _improve_by_swaps(
    order: tuple[int, ...], loss: Callable[[tuple[int, ...]], float], looks: int, seed: str
) -> tuple[int, ...]:
    """Swap pairs of heads in random order while that lowers the loss, with at most ``looks`` evaluations."""
    pairs = list(combinations(range(len(order)), 2))
    shuffle = random.Random(seed)
    best, improved = loss(order), True
    while improved:
        improved = False
        shuffle.shuffle(pairs)
        for one, other in pairs:
            if looks <= 0:
                return order
            looks -= 1
            tried = list(order)
            tried[one], tried[other] = tried[other], tried[one]
            found = loss(tuple(tried))
            if found < best * (1 - 1e-9):
                order, best, improved = tuple(tried), found, True
    return order
