"""Shared queries and keys that keep the attention scores, for any layout.

Attention head p scores with query ``q_p`` and key ``k_p``, each linear in its input; in the result it reads
the shared query ``a(p)`` and the shared key ``b(p)``. They minimise, for independent inputs x and y and over
distances (`rotary_averages`),

    sum_p weight_p E ( q_p(x)' R k_p(y)  -  q_a(p)(x)' R k_b(p)(y) )^2 .

For fixed keys the best queries solve a linear system of head_dim unknowns a feature, and the other way
round; the two take turns, and neither ever makes the sum larger. With one shared key and a query for each
head this is GQA and MQA (without rotary positions its optimum is the truncated singular value decomposition),
with both shared it is GQKVA. Everything is float64 and works on inner products alone; ``noise`` says how
precise those are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.transforms.closed_form import plane_products, shared_planes, shared_subspace
from gqkva_convert.transforms.rotary_averages import Turning

Array = NDArray[np.float64]

MAX_ROUNDS = 40
# Rounds end when one lowers the loss by less than this share of it.
_ENOUGH = 2e-3
# A system smaller than this is that of heads without weights.
_NOTHING = 1e-200


@dataclass(frozen=True)
class ScoredHead:
    """One attention head: its shared query and key, and the member of each that it read in the source."""

    query: int
    query_member: int
    key: int
    key_member: int


@dataclass(frozen=True)
class Scores:
    """The heads that share queries or keys with each other.

    Attributes:
        heads: One entry per attention head.
        queries: For each shared query, the inner products of its members' features, members in order:
            ``(members * head_dim, members * head_dim)``.
        keys: The same for each shared key.
        weights: Weight of each attention head's score error, ``(attention heads,)``.
        head_dim: Features per head.
        first: First feature of each rotary plane.
        second: Second feature of each rotary plane.
        noise: Share of the largest eigenvalue of inner products below which one is rounding; systems get
            it as a ridge, relative to the mean of their diagonal: what carries nothing stays small.
    """

    heads: tuple[ScoredHead, ...]
    queries: tuple[Array, ...]
    keys: tuple[Array, ...]
    weights: Array
    head_dim: int
    first: list[int] = field(default_factory=list)
    second: list[int] = field(default_factory=list)
    noise: float = 1e-12

    @property
    def resting(self) -> list[int]:
        """Return the features that do not turn."""
        return sorted(set(range(self.head_dim)) - {*self.first, *self.second})

    def span(self, member: int) -> slice:
        """Return a member's slice of a shared head's features."""
        return slice(member * self.head_dim, (member + 1) * self.head_dim)


Mixes = list[Array]


def shared_scores(scores: Scores, turning: Turning, rounds: int = MAX_ROUNDS) -> tuple[Mixes, Mixes]:
    """Mix members into shared queries and keys.

    Args:
        scores: Layout and inner products.
        turning: Averages of rotary positions over distances.
        rounds: Most rounds of queries and keys in turn.

    Returns:
        ``(queries, keys)``: for each shared head ``(head_dim, members * head_dim)``, to be multiplied by
        its members' rows.
    """
    keys = [_first_key(scores, shared) for shared in range(len(scores.keys))]
    if all(len(products) == scores.head_dim for products in scores.keys):
        keys = [np.eye(scores.head_dim) for _ in scores.keys]
    shared_keys = _Shared(keys, [key @ products for key, products in zip(keys, scores.keys, strict=True)])
    shared_queries, explained = _best(scores, shared_keys, "query", turning.average)
    energy, previous = score_energy(scores, turning), np.inf
    for _ in range(rounds):
        shared_keys, _ = _best(scores, shared_queries, "key", turning.average_back)
        shared_keys = _balance(scores, shared_keys)
        shared_queries, explained = _best(scores, shared_keys, "query", turning.average)
        loss = max(energy - explained, 0.0)
        if loss > previous * (1 - _ENOUGH) or loss <= scores.noise / 10 * energy:
            break
        previous = loss
    return shared_queries.mixes, shared_keys.mixes


@dataclass(frozen=True)
class _Shared:
    """Shared heads of a role.

    Attributes:
        mixes: Shares of the members' features, ``(head_dim, members * head_dim)`` each.
        products: Inner products with the members' features, of the same shapes.
    """

    mixes: Mixes
    products: list[Array]

    @property
    def sizes(self) -> list[Array]:
        """Return inner products of each head's features, ``(head_dim, head_dim)`` each."""
        return [products @ mix.T for products, mix in zip(self.products, self.mixes, strict=True)]


def score_loss(scores: Scores, turning: Turning, queries: Sequence[Array], keys: Sequence[Array]) -> float:
    """Return the sum that `shared_scores` minimises, for mixes of the shapes that it returns."""
    total = 0.0
    for head, weight in zip(scores.heads, scores.weights, strict=True):
        query_span, key_span = scores.span(head.query_member), scores.span(head.key_member)
        query, key = queries[head.query], keys[head.key]
        shared_query, shared_key = query @ scores.queries[head.query], key @ scores.keys[head.key]
        error = _head_energy(scores, turning, head)
        error -= 2 * np.sum(shared_query[:, query_span] * turning.average(shared_key[:, key_span]))
        error += np.sum((shared_query @ query.T) * turning.average(shared_key @ key.T))
        total += float(weight * error)
    return max(total, 0.0)


def score_energy(scores: Scores, turning: Turning) -> float:
    """Return the weighted sum of squared scores, which a loss is relative to."""
    pairs = zip(scores.heads, scores.weights, strict=True)
    return float(sum(weight * _head_energy(scores, turning, head) for head, weight in pairs))


def _head_energy(scores: Scores, turning: Turning, head: ScoredHead) -> np.float64:
    """Return ``E (q' R k)^2`` of one attention head of the source."""
    query, key = scores.span(head.query_member), scores.span(head.key_member)
    own = turning.average(scores.keys[head.key][key, key])
    energy: np.float64 = np.sum(scores.queries[head.query][query, query] * own)
    return energy


def _best(
    scores: Scores, given: _Shared, role: Literal["query", "key"], average: Callable[[Array], Array]
) -> tuple[_Shared, float]:
    """Solve for the shared heads of a role given those of the other: normal equations of the module's sum.

    Args:
        scores: Layout and inner products.
        given: Shared heads of the other role.
        role: Role to solve for.
        average: Average of rotary positions over distances, seen from that role.

    Returns:
        The shared heads, and the energy of scores that they explain.
    """
    own, head_dim = scores.queries if role == "query" else scores.keys, scores.head_dim
    weights = np.zeros((len(own), len(given.mixes)))
    sides = [np.zeros((head_dim, len(products))) for products in own]
    for head, weight in zip(scores.heads, scores.weights, strict=True):
        ends = (head.query, head.query_member), (head.key, head.key_member)
        (one, member), (partner, read) = ends if role == "query" else ends[::-1]
        weights[one, partner] += weight
        sides[one][:, scores.span(member)] += weight * given.products[partner][:, scores.span(read)]
    # Heads that read the same others in the same proportion have one system.
    totals = np.maximum(weights.sum(axis=1), _NOTHING)
    shares, system_of = np.unique(weights / totals[:, None], axis=0, return_inverse=True)
    sizes = given.sizes
    systems = [sum(share * size for share, size in zip(row, sizes, strict=True)) for row in shares]
    inverses = [_inverse(average(system), scores.noise) for system in systems]
    for side in sides:
        for start in range(0, side.shape[1], head_dim):
            side[:, start : start + head_dim] = average(side[:, start : start + head_dim])
    mixes = [
        (inverses[system] / total) @ side
        for system, side, total in zip(system_of.reshape(-1), sides, totals, strict=True)
    ]
    products = [mix @ members for mix, members in zip(mixes, own, strict=True)]
    explained = sum(float(np.vdot(found, side)) for found, side in zip(products, sides, strict=True))
    return _Shared(mixes, products), explained


def _inverse(system: Array, noise: float) -> Array:
    """Return the ridge inverse of a positive semidefinite ``(size, size)``; zeros for one of zeros."""
    mean = float(np.trace(system)) / len(system)
    if mean < _NOTHING:
        return np.zeros_like(system)
    scaled = (system + system.T) / (2 * mean) + noise * np.eye(len(system))
    result: Array = np.linalg.inv(scaled) / mean
    return result


def _balance(scores: Scores, keys: _Shared) -> _Shared:
    """Return the keys in a basis in which all features have the mean energy of the members'.

    The queries, solved for afterwards, take the inverse. Features of very different size would lose
    precision to rounding.
    """
    first, second, resting = scores.first, scores.second, scores.resting
    sizes = sum(keys.sizes) / np.float64(len(keys.mixes))
    wanted = sum(float(np.trace(products)) / len(products) for products in scores.keys) / len(scores.keys)
    if wanted < _NOTHING:
        return keys
    # Multiplied by B with B S B' = wanted I, for the mean second moment S of the keys; a plane only scales.
    factors, floor = np.ones(scores.head_dim), 100 * scores.noise
    if first:
        squares = (sizes[first, first] + sizes[second, second]) / 2
        factors[first] = factors[second] = _factors(squares, wanted, floor)
    balanced = [[one * factors[:, None] for one in part] for part in (keys.mixes, keys.products)]
    if resting:
        part = sizes[np.ix_(resting, resting)]
        values, vectors = np.linalg.eigh((part + part.T) / 2)
        # Of all such bases the symmetric one: it changes as little as the sizes do.
        basis = (vectors * _factors(values, wanted, floor)) @ vectors.T
        for one in (*balanced[0], *balanced[1]):
            one[resting] = basis @ one[resting]
    return _Shared(*balanced)


def _factors(squares: Array, wanted: float, floor: float) -> Array:
    """Return the factors that scale squares to ``wanted``; 1 for those below ``floor`` of the largest."""
    known = squares > floor * max(float(squares.max()), _NOTHING)
    result: Array = np.where(known, np.sqrt(wanted / np.where(known, squares, 1)), 1)
    return result


def _first_key(scores: Scores, shared: int) -> Array:
    """Return the starting point: the best shared key if no plane could be mixed with another."""
    head_dim, products = scores.head_dim, scores.keys[shared]
    first, second, resting = scores.first, scores.second, scores.resting
    members = len(products) // head_dim
    readers = np.zeros((members, head_dim, head_dim))
    for head, weight in zip(scores.heads, scores.weights, strict=True):
        if head.key == shared:
            span = scores.span(head.query_member)
            readers[head.key_member] += weight * scores.queries[head.query][span, span]
    # Closed forms of Eckart and Young (1936; `closed_form`): rank 1 in each plane, rank head_dim elsewhere.
    mix = np.zeros((members, head_dim, head_dim))
    if first:
        diagonal = np.diagonal(readers, axis1=1, axis2=2)
        energies = diagonal[:, first] + diagonal[:, second]
        factors, _ = shared_planes(plane_products(products, first, second, head_dim), energies)
        mix[:, first, first] = mix[:, second, second] = factors.real
        mix[:, first, second], mix[:, second, first] = -factors.imag, factors.imag
    if resting:
        places = np.array([member * head_dim + feature for member in range(members) for feature in resting])
        combination, _ = shared_subspace(products[np.ix_(places, places)], readers[:, resting][:, :, resting])
        mix[np.ix_(range(members), resting, resting)] = combination
    result: Array = mix.transpose(1, 0, 2).reshape(head_dim, members * head_dim)
    return result
