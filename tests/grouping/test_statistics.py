"""What searches look at does not change under rotations that leave the model unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from gqkva_convert.grouping.costs import (
    activation_similarity,
    closed_form_loss,
    loss_similarity,
    mean_cost,
    query_similarity,
)
from gqkva_convert.grouping.statistics import BlockStatistics, head_products

UNITS, HEAD_DIM, INPUTS = 5, 6, 9
FIRST, SECOND = (0, 1), (2, 3)


def statistics(heads: dict[str, np.ndarray]) -> BlockStatistics:
    return BlockStatistics(
        HEAD_DIM,
        FIRST,
        SECOND,
        head_products(heads["key"], None),
        head_products(heads["value"], None),
        head_products(heads["query"], None),
        np.stack([query @ query.T for query in heads["query"]]),
        np.stack([output @ output.T for output in heads["output"]]),
    )


def random_heads(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        role: random.standard_normal((UNITS, HEAD_DIM, INPUTS))
        for role in ("query", "key", "value", "output")
    }


def turned(heads: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The same heads, each in another basis: planes rotated, resting features and values mixed."""
    random = np.random.default_rng(seed)
    result = {role: found.copy() for role, found in heads.items()}
    for head in range(UNITS):
        turn = np.zeros((HEAD_DIM, HEAD_DIM))
        for one, two in zip(FIRST, SECOND, strict=True):
            angle = random.uniform(0, 2 * np.pi)
            turn[[one, two], [one, two]] = np.cos(angle)
            turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        turn[4:, 4:] = np.linalg.qr(random.standard_normal((2, 2)))[0]
        mix = np.linalg.qr(random.standard_normal((HEAD_DIM, HEAD_DIM)))[0]
        result["key"][head], result["query"][head] = turn @ heads["key"][head], turn @ heads["query"][head]
        result["value"][head], result["output"][head] = (
            mix @ heads["value"][head],
            mix @ heads["output"][head],
        )
    return result


def test_aligned_measures_are_the_same_in_every_basis() -> None:
    """Joshi et al.'s error is not (arXiv 2406.10247): a rotation that changes nothing changes its groups."""
    heads = random_heads(0)
    one, other = statistics(heads), statistics(turned(heads, 1))
    np.testing.assert_allclose(
        activation_similarity(one, aligned=True), activation_similarity(other, aligned=True), atol=1e-9
    )
    for group in ((0, 1), (1, 3, 4)):
        assert closed_form_loss(one, group) == pytest.approx(closed_form_loss(other, group))
    raw = activation_similarity(one, aligned=False)
    assert np.abs(raw - activation_similarity(other, aligned=False)).max() > 0.1


def test_equal_heads_cost_nothing_together() -> None:
    """Under every measure, whatever basis the copies are in."""
    heads = random_heads(2)
    for found in heads.values():
        found[1] = found[0]
    found = statistics(turned(heads, 3))
    pair, other = (0, 1), (0, 2)
    assert closed_form_loss(found, pair) < 1e-9 < closed_form_loss(found, other)
    for similarity in (
        activation_similarity(found, aligned=True),
        loss_similarity(found),
        query_similarity(found),
    ):
        assert mean_cost(similarity)(pair) < 1e-3 * mean_cost(similarity)(other)


def test_a_larger_group_never_costs_less() -> None:
    """Adding a head adds what it loses."""
    found = statistics(random_heads(4))
    losses = [closed_form_loss(found, tuple(range(size))) for size in range(1, UNITS + 1)]
    assert losses[0] == 0
    assert losses == sorted(losses)
