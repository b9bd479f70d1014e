"""Averages of heads turned into a common frame first (generalised Procrustes; Jin et al., 2024, 2412.20677).

A value head may be turned by any orthogonal matrix if its output block turns along; a key head by a rotation
of each rotary plane (a unit complex number, so determinant +1), or by any orthogonal matrix where features do
not turn, if its queries turn along. Turns and mean take turns until they agree.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.transforms.scores import Mixes, ScoredHead, Scores

Array = NDArray[np.float64]

ROUNDS = 12


def aligned_values(products: Array, head_dim: int) -> Array:
    """Return the orthogonal turns that align value heads.

    Args:
        products: Inner products of all features of all heads, ``(heads * head_dim, heads * head_dim)``.
        head_dim: Features per head.

    Returns:
        ``(heads, head_dim, head_dim)``: head s becomes ``turns[s] @ head``; a reader turns alike.
    """
    count = len(products) // head_dim
    heads = tuple(ScoredHead(head, 0, 0, head) for head in range(count))
    alone = tuple(np.zeros((head_dim, head_dim)) for _ in range(count))
    scores = Scores(heads, alone, (products,), np.ones(count), head_dim)
    return _turns(scores, signs_only=False)[0]


def aligned_scores(scores: Scores, *, signs_only: bool = False) -> tuple[Mixes, Mixes]:
    """Return mixes of shared queries and keys as means of aligned heads; shapes as `scores.shared_scores`.

    Args:
        scores: Layout and inner products.
        signs_only: Turn planes by half turns alone, all that a norm on queries and keys allows.
    """
    turns = _turns(scores, signs_only)
    keys = [found.transpose(1, 0, 2).reshape(scores.head_dim, -1) / len(found) for found in turns]
    queries = [np.zeros((scores.head_dim, len(products))) for products in scores.queries]
    readers = Counter(head.query for head in scores.heads)
    for head in scores.heads:
        turn = turns[head.key][head.key_member]
        queries[head.query][:, scores.span(head.query_member)] += turn / readers[head.query]
    return queries, keys


def rescale(mix: Array, products: Array) -> Array:
    """Scale a mean to the size of its members, which cancellation has reduced.

    Args:
        mix: ``(head_dim, members * head_dim)``.
        products: Inner products of the members' features, ``(members * head_dim, members * head_dim)``.
    """
    size = float(np.sum((mix @ products) * mix)) / len(mix)
    wanted = float(np.trace(products)) / len(products)
    return mix * np.sqrt(wanted / size) if size > 0 and wanted > 0 else mix


def _turns(scores: Scores, signs_only: bool) -> list[Array]:
    """Return, for each shared key, the turn of each of its members, ``(members, head_dim, head_dim)``."""
    head_dim = scores.head_dim
    turns = [np.stack([np.eye(head_dim)] * (len(products) // head_dim)) for products in scores.keys]
    # Generalised Procrustes: each member turns towards the sum of the others, in turn (Jin et al., 2024).
    for _ in range(ROUNDS):
        for shared, products in enumerate(scores.keys):
            for member in range(len(turns[shared])):
                target = np.zeros((head_dim, head_dim))
                for other in range(len(turns[shared])):
                    if other != member:
                        target += turns[shared][other] @ products[scores.span(other), scores.span(member)]
                for head in scores.heads:
                    if (head.key, head.key_member) == (shared, member):
                        target += _queries_beside(scores, head, turns)
                turns[shared][member] = _best_turn(target, scores, signs_only)
    return turns


def _queries_beside(scores: Scores, head: ScoredHead, turns: list[Array]) -> Array:
    """Sum the products of a head's query with the turned queries that share its stored query."""
    products = scores.queries[head.query]
    total = np.zeros((scores.head_dim, scores.head_dim))
    for other in scores.heads:
        if other.query == head.query and other.query_member != head.query_member:
            span, own = scores.span(other.query_member), scores.span(head.query_member)
            total += turns[other.key][other.key_member] @ products[span, own]
    return total


def _best_turn(target: Array, scores: Scores, signs_only: bool) -> Array:
    """Return the allowed turn ``T`` that maximises ``trace(T' target)`` (orthogonal Procrustes problem)."""
    first, second, resting = scores.first, scores.second, scores.resting
    turn = np.zeros_like(target)
    if first:
        same = target[first, first] + target[second, second]
        crossed = target[second, first] - target[first, second]
        if signs_only:
            same, crossed = np.where(same < 0, -1.0, 1.0), np.zeros_like(crossed)
        length = np.hypot(same, crossed)
        known = length > 0
        cosine = np.where(known, same / np.where(known, length, 1), 1)
        sine = np.where(known, crossed / np.where(known, length, 1), 0)
        turn[first, first] = turn[second, second] = cosine
        turn[first, second], turn[second, first] = -sine, sine
    if resting:
        part = target[np.ix_(resting, resting)]
        if signs_only:
            turn[resting, resting] = np.where(np.diagonal(part) < 0, -1.0, 1.0)
        else:
            left, _, right = np.linalg.svd(part)
            turn[np.ix_(resting, resting)] = left @ right
    return turn
