"""Shared queries and keys: optimal for their objective, exact where nothing need be lost."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from gqkva_convert.transforms.aligned import aligned_scores
from gqkva_convert.transforms.closed_form import inner_products
from gqkva_convert.transforms.rotary_averages import Turning, make_turning, still
from gqkva_convert.transforms.scores import ScoredHead, Scores, score_energy, score_loss, shared_scores

Array = NDArray[np.float64]
HEAD_DIM, INPUTS, CONTEXT = 6, 11, 40
FIRST, SECOND = [0, 1], [2, 3]  # two planes turn, features 4 and 5 do not
FREQUENCIES = np.array([1.0, 0.02])
TURNING = make_turning(HEAD_DIM, FIRST, SECOND, FREQUENCIES, CONTEXT)

# What each attention head reads in the result: its query and its key.
GQA = [(0, 0), (1, 0), (2, 0), (3, 0)]
GQKVA = [(0, 0), (0, 1), (1, 0), (1, 1)]
GKVA = [(0, 0), (0, 1), (1, 2), (1, 3)]


def turn(distance: float) -> Array:
    """The turn R of a distance, feature by feature."""
    matrix = np.eye(HEAD_DIM)
    for one, two, frequency in zip(FIRST, SECOND, FREQUENCIES, strict=True):
        cosine, sine = np.cos(frequency * distance), np.sin(frequency * distance)
        matrix[one, one], matrix[one, two], matrix[two, one], matrix[two, two] = cosine, -sine, sine, cosine
    return matrix


def scores_of(
    queries: Array, keys: Array, reads: list[tuple[int, int]], weights: Array, *, turns: bool = True
) -> Scores:
    """Heads of their own query and key, ``(heads, head_dim, inputs)``, that will read shared ones."""
    members: dict[str, dict[int, list[int]]] = {"query": {}, "key": {}}
    heads = []
    for head, (query, key) in enumerate(reads):
        members["query"].setdefault(query, []).append(head)
        members["key"].setdefault(key, []).append(head)
        heads.append(
            ScoredHead(query, members["query"][query].index(head), key, members["key"][key].index(head))
        )
    return Scores(
        tuple(heads),
        tuple(inner_products(np.concatenate(queries[group]), None) for group in members["query"].values()),
        tuple(inner_products(np.concatenate(keys[group]), None) for group in members["key"].values()),
        weights,
        HEAD_DIM,
        *((FIRST, SECOND) if turns else ()),
    )


def random_heads(seed: int) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(seed)
    queries, keys = random.standard_normal((2, 4, HEAD_DIM, INPUTS))
    return queries, keys, random.uniform(0.5, 2, 4)


def test_averages_are_those_of_the_turns_themselves() -> None:
    """Against the turn of every distance, one by one."""
    random = np.random.default_rng(0)
    products = random.standard_normal((HEAD_DIM, HEAD_DIM))
    distances = np.arange(CONTEXT)
    weights = np.sqrt((CONTEXT - distances) / (1 + distances))
    weights /= weights.sum()
    expected = sum(w * turn(t) @ products @ turn(t).T for t, w in zip(distances, weights, strict=True))
    back = sum(w * turn(t).T @ products @ turn(t) for t, w in zip(distances, weights, strict=True))
    np.testing.assert_allclose(TURNING.average(products), expected, atol=1e-12)
    np.testing.assert_allclose(TURNING.average_back(products), back, atol=1e-12)


@pytest.mark.parametrize("reads", [GQA, GQKVA, GKVA])
@pytest.mark.parametrize("turning", [TURNING, still(HEAD_DIM)], ids=["rotary", "still"])
def test_the_loss_is_the_expected_squared_difference_of_scores(
    reads: list[tuple[int, int]], turning: Turning
) -> None:
    """Written out with the turns themselves, so that no term can be missing."""
    queries, keys, weights = random_heads(1)
    scores = scores_of(queries, keys, reads, weights)
    random = np.random.default_rng(2)
    query_mixes = [random.standard_normal((HEAD_DIM, len(products))) for products in scores.queries]
    key_mixes = [random.standard_normal((HEAD_DIM, len(products))) for products in scores.keys]
    distances = np.arange(CONTEXT) if turning is TURNING else np.zeros(1)
    shares = np.sqrt((CONTEXT - distances) / (1 + distances))
    shares /= shares.sum()
    expected = 0.0
    for head, (query, key) in enumerate(reads):
        shared_query = query_mixes[query] @ np.concatenate(
            queries[[h for h, r in enumerate(reads) if r[0] == query]]
        )
        shared_key = key_mixes[key] @ np.concatenate(keys[[h for h, r in enumerate(reads) if r[1] == key]])
        for distance, share in zip(distances, shares, strict=True):
            matrix = turn(distance) if turning is TURNING else np.eye(HEAD_DIM)
            difference = queries[head].T @ matrix @ keys[head] - shared_query.T @ matrix @ shared_key
            expected += weights[head] * share * float(np.square(difference).sum())
    assert score_loss(scores, turning, query_mixes, key_mixes) == pytest.approx(expected)


@pytest.mark.parametrize("reads", [GQA, GQKVA, GKVA])
@pytest.mark.parametrize("turning", [TURNING, still(HEAD_DIM)], ids=["rotary", "still"])
@pytest.mark.parametrize("seed", range(3))
def test_no_change_makes_shared_scores_better(
    reads: list[tuple[int, int]], turning: Turning, seed: int
) -> None:
    """Neither a small step from the result, nor the mean, nor the aligned mean."""
    queries, keys, weights = random_heads(seed)
    scores = scores_of(queries, keys, reads, weights, turns=turning is TURNING)
    mixes = shared_scores(scores, turning, rounds=500)
    loss = score_loss(scores, turning, *mixes)
    for other in (aligned_scores(scores), shared_scores(scores, turning, 0)):
        assert score_loss(scores, turning, *other) >= loss * (1 - 1e-9)
    random = np.random.default_rng(seed)
    for _ in range(10):
        moved = [[mix + 1e-4 * random.standard_normal(mix.shape) for mix in part] for part in mixes]
        # Rounds end at a small gain, not at none.
        assert score_loss(scores, turning, *moved) >= loss * (1 - 1e-3)


def test_without_positions_one_shared_key_is_the_truncated_decomposition() -> None:
    """Eckart and Young: what rank head_dim cannot hold of all heads' query-key maps side by side."""
    queries, keys, _ = random_heads(3)
    scores = scores_of(queries, keys, GQA, np.ones(4), turns=False)
    mixes = shared_scores(scores, still(HEAD_DIM))
    maps = np.concatenate([query.T @ key for query, key in zip(queries, keys, strict=True)])
    expected = float(np.square(np.linalg.svd(maps)[1][HEAD_DIM:]).sum())
    assert score_loss(scores, still(HEAD_DIM), *mixes) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("reads", [GQA, GQKVA])
def test_heads_that_differ_by_an_invariance_merge_without_loss(reads: list[tuple[int, int]]) -> None:
    """A complex factor a plane and any mixing of features that do not turn; the mean loses most of it."""
    random = np.random.default_rng(4)
    base_queries, base_keys = random.standard_normal((2, 4, HEAD_DIM, INPUTS))
    queries, keys = [], []
    for query, key in reads:
        matrix = np.zeros((HEAD_DIM, HEAD_DIM))
        for one, two in zip(FIRST, SECOND, strict=True):
            angle, length = random.uniform(0, 2 * np.pi), random.uniform(0.5, 2)
            matrix[[one, two], [one, two]] = length * np.cos(angle)
            matrix[one, two], matrix[two, one] = -length * np.sin(angle), length * np.sin(angle)
        matrix[4:, 4:] = random.standard_normal((2, 2)) + 2 * np.eye(2)
        keys.append(matrix @ base_keys[key])
        queries.append(np.linalg.inv(matrix).T @ base_queries[query])
    scores = scores_of(np.stack(queries), np.stack(keys), reads, np.ones(4))
    energy = score_energy(scores, TURNING)
    mixes = shared_scores(scores, TURNING, rounds=500)
    limit = 1e-9 if reads is GQA else 0.02  # both shared: found by turns, not in one step
    assert score_loss(scores, TURNING, *mixes) < limit * energy


@pytest.mark.parametrize("merge", [shared_scores, aligned_scores])
def test_equal_heads_come_out_equal(merge: Callable[..., object]) -> None:
    """Heads that agree already lose nothing under any rule, whatever they share."""
    random = np.random.default_rng(5)
    query, key = random.standard_normal((2, HEAD_DIM, INPUTS))
    scores = scores_of(np.stack([query] * 4), np.stack([key] * 4), GQKVA, np.ones(4))
    mixes = merge(scores, TURNING) if merge is shared_scores else merge(scores)
    assert score_loss(scores, TURNING, *mixes) < 1e-10 * score_energy(scores, TURNING)  # type: ignore[misc]


def test_turned_keys_are_aligned_before_they_are_averaged() -> None:
    """Rotations of planes and orthogonal mixings are undone exactly; half turns alone undo half turns."""
    random = np.random.default_rng(6)
    query, key = random.standard_normal((2, HEAD_DIM, INPUTS))
    for signs_only in (False, True):
        queries, keys = [], []
        for _ in range(4):
            matrix = np.diag(np.repeat(1.0, HEAD_DIM))
            if signs_only:
                signs = random.choice([-1.0, 1.0], 4)
                matrix = np.diag([signs[0], signs[1], signs[0], signs[1], signs[2], signs[3]])
            else:
                for one, two in zip(FIRST, SECOND, strict=True):
                    angle = random.uniform(0, 2 * np.pi)
                    matrix[[one, two], [one, two]] = np.cos(angle)
                    matrix[one, two], matrix[two, one] = -np.sin(angle), np.sin(angle)
                matrix[4:, 4:] = np.linalg.qr(random.standard_normal((2, 2)))[0]
            keys.append(matrix @ key)
            queries.append(matrix @ query)
        scores = scores_of(np.stack(queries), np.stack(keys), GQA, np.ones(4))
        mixes = aligned_scores(scores, signs_only=signs_only)
        assert score_loss(scores, TURNING, *mixes) < 1e-10 * score_energy(scores, TURNING)


def test_dead_heads_give_finite_numbers() -> None:
    """Heads without weights happen in trained models."""
    scores = scores_of(np.zeros((4, HEAD_DIM, INPUTS)), np.zeros((4, HEAD_DIM, INPUTS)), GQKVA, np.ones(4))
    for part in shared_scores(scores, TURNING):
        for mix in part:
            assert np.isfinite(mix).all()
