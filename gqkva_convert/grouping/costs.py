"""Costs of groups of heads, which searches minimise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.grouping.statistics import BlockStatistics, aligned_planes, plain_similarity, value_overlap
from gqkva_convert.transforms.closed_form import plane_products, planes_residual, subspace_residual
from gqkva_convert.transforms.rotary_averages import Turning
from gqkva_convert.transforms.scores import ScoredHead, Scores, score_energy, score_loss, shared_scores

Array = NDArray[np.float64]
Group = tuple[int, ...]
Cost = Callable[[Group], float]

# Share of a relative error of values beside one of keys: on the built-in model, values merged alone raise the
# loss 3 to 5 times less than keys (docs/methods.md).
VALUE_SHARE = 0.25
# Rounds of the closed form that tell one grid from another.
_GRID_ROUNDS = 6


def mean_cost(similarity: Array) -> Cost:
    """Return the cost of a group: the squared distance of its heads to their mean.

    The weight-sharing error of Joshi et al., 2024 (arXiv 2406.10247, section 3), in whatever frame the
    inner products ``similarity``, ``(heads, heads)``, were taken.
    """
    own = np.diagonal(similarity)

    def cost(group: Group) -> float:
        members = list(group)
        part = similarity[members][:, members]
        return float(own[members].sum() - part.sum() / len(members))

    return cost


def activation_similarity(statistics: BlockStatistics, aligned: bool) -> Array:
    """Return ``(heads, heads)``: cosine of heads' keys and cosine of their values, averaged."""
    if not aligned:
        keys = plain_similarity(statistics.keys, statistics.head_dim)
        return (keys + plain_similarity(statistics.values, statistics.head_dim)) / 2
    keys = aligned_planes(statistics, statistics.keys)
    return (_unit(keys) + _unit(value_overlap(statistics, weighted=False))) / 2


def loss_similarity(statistics: BlockStatistics) -> Array:
    """Return inner products ``(heads, heads)`` whose `mean_cost` approximates the closed form's loss.

    Keys are weighted by the energy of the queries that read them, values by their output blocks.
    """
    keys = aligned_planes(statistics, statistics.keys, statistics.key_readers)
    values = value_overlap(statistics, weighted=True)
    keys /= max(np.trace(keys), 1e-300)
    keys += VALUE_SHARE / max(np.trace(values), 1e-300) * values
    return keys


def query_similarity(statistics: BlockStatistics) -> Array:
    """Return `loss_similarity` of queries that will be shared, by the energy of the keys they read."""
    count, head_dim = statistics.units, statistics.head_dim
    blocks = statistics.keys.reshape(count, head_dim, count, head_dim)
    found = aligned_planes(statistics, statistics.queries, np.einsum("sfsg->sfg", blocks))
    result: Array = found / max(np.trace(found), 1e-300)
    return result


def closed_form_loss(statistics: BlockStatistics, group: Sequence[int]) -> float:
    """Return the closed form's loss of a group relative to the block: keys' error and a share of values'."""
    return key_loss(statistics, group) + VALUE_SHARE * _value_loss(statistics, group)


def grid_loss(
    statistics: BlockStatistics,
    order: Sequence[int],
    queries: Sequence[int],
    keys: Sequence[int],
    turning: Turning,
) -> float:
    """Return the closed form's loss relative to the block where queries are shared too.

    Args:
        statistics: The block, queries included.
        order: Head of each place of the result.
        queries: Shared query of each place.
        keys: Shared key and value of each place.
        turning: Averages of rotary positions over distances.
    """
    members: dict[str, dict[int, list[int]]] = {"query": {}, "key": {}}
    scored = []
    for head, query, key in zip(order, queries, keys, strict=True):
        rows, columns = members["query"].setdefault(query, []), members["key"].setdefault(key, [])
        rows.append(head)
        columns.append(head)
        scored.append(ScoredHead(query, len(rows) - 1, key, len(columns) - 1))
    head_dim, count = statistics.head_dim, statistics.units
    blocks = statistics.values.reshape(count, head_dim, count, head_dim)
    energies = np.einsum("sfsg,sgf->s", blocks, statistics.value_readers)
    weights = np.sqrt(np.maximum(energies, 0))[list(order)]
    scores = Scores(
        tuple(scored),
        tuple(
            _part(statistics, statistics.queries, members["query"][row]) for row in sorted(members["query"])
        ),
        tuple(
            _part(statistics, statistics.keys, members["key"][column]) for column in sorted(members["key"])
        ),
        weights / max(float(weights.mean()), 1e-300),
        head_dim,
        list(statistics.first),
        list(statistics.second),
    )
    mixes = shared_scores(scores, turning, rounds=_GRID_ROUNDS)
    alone = [replace(scores, heads=(head,), weights=np.ones(1)) for head in scored]
    own = np.array([max(score_energy(one, turning), 1e-300) for one in alone])
    lost = score_loss(replace(scores, weights=1 / own), turning, *mixes) / len(own)
    return lost + VALUE_SHARE * sum(_value_loss(statistics, group) for group in members["key"].values())


def _part(statistics: BlockStatistics, products: Array, group: Sequence[int]) -> Array:
    head_dim = statistics.head_dim
    places = np.concatenate([np.arange(unit * head_dim, (unit + 1) * head_dim) for unit in group])
    result: Array = products[np.ix_(places, places)]
    return result


def _value_loss(statistics: BlockStatistics, group: Sequence[int]) -> float:
    if len(group) == 1:
        return 0.0
    products = _part(statistics, statistics.values, group)
    readers = statistics.value_readers[list(group)]
    head_dim, count = statistics.head_dim, statistics.units
    blocks = statistics.values.reshape(count, head_dim, count, head_dim)
    energy = float(np.einsum("sfsg,sgf->", blocks, statistics.value_readers))
    return subspace_residual(products, readers) / max(energy, 1e-300)


def key_loss(statistics: BlockStatistics, group: Sequence[int]) -> float:
    """Return the keys' part of `closed_form_loss`, cheap enough to search with."""
    if len(group) == 1:
        return 0.0
    head_dim, count = statistics.head_dim, statistics.units
    first, second = list(statistics.first), list(statistics.second)
    products = _part(statistics, statistics.keys, group)
    readers = statistics.key_readers[list(group)]
    own = np.diagonal(statistics.keys).reshape(count, head_dim)
    read = np.diagonal(statistics.key_readers, axis1=1, axis2=2)
    energy, lost = 0.0, 0.0
    if first:
        energies = read[:, first] + read[:, second]
        energy += float((energies * (own[:, first] + own[:, second])).sum())
        planes = plane_products(products, first, second, head_dim)
        lost += planes_residual(planes, energies[list(group)])
    resting = sorted(set(range(head_dim)) - {*first, *second})
    if resting:
        blocks = statistics.keys.reshape(count, head_dim, count, head_dim)
        chosen = statistics.key_readers[:, resting][:, :, resting]
        energy += 2 * float(np.einsum("sfsg,sgf->", blocks[:, resting][:, :, :, resting], chosen))
        places = np.array([m * head_dim + f for m in range(len(group)) for f in resting])
        part = products[np.ix_(places, places)]
        lost += 2 * subspace_residual(part, readers[:, resting][:, :, resting])
    return lost / max(energy, 1e-300)


def _unit(similarity: Array) -> Array:
    size = np.sqrt(np.maximum(np.diagonal(similarity), 1e-300))
    result: Array = similarity / np.outer(size, size)
    return result
