"""What a group of heads costs, for searches that make the sum over groups small."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.grouping.statistics import (
    BlockStatistics,
    aligned_planes,
    plain_similarity,
    value_overlap,
)
from gqkva_convert.transforms.closed_form import (
    plane_products,
    planes_residual,
    subspace_residual,
)

Array = NDArray[np.float64]
Group = tuple[int, ...]
Cost = Callable[[Group], float]

# Share of a relative error of values beside one of keys: on the built-in model, values merged alone raise the
# loss 3 to 5 times less than keys (docs/methods.md).
VALUE_SHARE = 0.25


def mean_cost(similarity: Array) -> Cost:
    """Squared distance of a group's heads to their mean, from their inner products ``(heads, heads)``.

    The weight-sharing error of Joshi et al., 2024 (arXiv 2406.10247, section 3), in whatever frame the
    inner products were taken.
    """
    own = np.diagonal(similarity)

    def cost(group: Group) -> float:
        members = list(group)
        part = similarity[members][:, members]
        return float(own[members].sum() - part.sum() / len(members))

    return cost


def activation_similarity(statistics: BlockStatistics, aligned: bool) -> Array:
    """Similarity of heads by the keys and values they put out, two cosines averaged, ``(heads, heads)``."""
    if not aligned:
        keys = plain_similarity(statistics.keys, statistics.head_dim)
        return (keys + plain_similarity(statistics.values, statistics.head_dim)) / 2
    keys = aligned_planes(statistics, statistics.keys)
    return (_unit(keys) + _unit(value_overlap(statistics, weighted=False))) / 2


def loss_similarity(statistics: BlockStatistics) -> Array:
    """Inner products whose `mean_cost` follows what the closed form loses; quick to search with.

    Keys count by the energy of the queries that read them, values by their output blocks.
    """
    keys = aligned_planes(statistics, statistics.keys, statistics.key_readers)
    values = value_overlap(statistics, weighted=True)
    keys /= max(np.trace(keys), 1e-300)
    keys += VALUE_SHARE / max(np.trace(values), 1e-300) * values
    return keys


def query_similarity(statistics: BlockStatistics) -> Array:
    """The same for queries that will be shared, by the energy of the keys they read."""
    count, head_dim = statistics.units, statistics.head_dim
    blocks = statistics.keys.reshape(count, head_dim, count, head_dim)
    found = aligned_planes(statistics, statistics.queries, np.einsum("sfsg->sfg", blocks))
    result: Array = found / max(np.trace(found), 1e-300)
    return result


def closed_form_loss(statistics: BlockStatistics, group: Sequence[int]) -> float:
    """What the closed form loses of a group, relative to the block: keys' error and a share of values'."""
    keys, values = _residuals(statistics, group)
    return keys + VALUE_SHARE * values


def key_loss(statistics: BlockStatistics, group: Sequence[int]) -> float:
    """The keys' part of `closed_form_loss`, cheap enough to search with."""
    return _key_residual(statistics, group)


def _residuals(statistics: BlockStatistics, group: Sequence[int]) -> tuple[float, float]:
    if len(group) == 1:
        return 0.0, 0.0
    places = _features(statistics, group)
    products = statistics.values[np.ix_(places, places)]
    readers = statistics.value_readers[list(group)]
    head_dim, count = statistics.head_dim, statistics.units
    blocks = statistics.values.reshape(count, head_dim, count, head_dim)
    energy = float(np.einsum("sfsg,sgf->", blocks, statistics.value_readers))
    return _key_residual(statistics, group), subspace_residual(products, readers) / max(energy, 1e-300)


def _key_residual(statistics: BlockStatistics, group: Sequence[int]) -> float:
    if len(group) == 1:
        return 0.0
    head_dim, count = statistics.head_dim, statistics.units
    first, second = list(statistics.first), list(statistics.second)
    products = statistics.keys[np.ix_(*[_features(statistics, group)] * 2)]
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


def _features(statistics: BlockStatistics, group: Sequence[int]) -> NDArray[np.intp]:
    head_dim = statistics.head_dim
    return np.concatenate([np.arange(unit * head_dim, (unit + 1) * head_dim) for unit in group])


def _unit(similarity: Array) -> Array:
    size = np.sqrt(np.maximum(np.diagonal(similarity), 1e-300))
    result: Array = similarity / np.outer(size, size)
    return result
