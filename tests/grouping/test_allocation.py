"""Numbers of heads under a budget."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from gqkva_convert.grouping.allocation import allocate, sizes_by_norm


def test_an_allocation_is_the_best_there_is() -> None:
    """Against every combination; greedy steps would miss some."""
    random = np.random.default_rng(0)
    for _ in range(30):
        losses = [{count: float(random.uniform(0, 3)) / count for count in (1, 2, 4, 8)} for _ in range(4)]
        budget = int(random.integers(4, 33))
        chosen = allocate(losses, budget)
        assert chosen is not None
        fitting = [numbers for numbers in product((1, 2, 4, 8), repeat=4) if sum(numbers) <= budget]
        best = min(sum(loss[n] for loss, n in zip(losses, numbers, strict=True)) for numbers in fitting)
        assert sum(loss[n] for loss, n in zip(losses, chosen, strict=True)) == pytest.approx(best)
        assert sum(chosen) <= budget


def test_no_head_is_kept_for_what_is_rounding() -> None:
    """Heads that are copies of each other merge for nothing, but for the last bits."""
    assert allocate([{1: 0.5, 2: 3e-17, 4: 1e-17}, {1: 0.5, 2: 2e-16, 4: 1e-17}], 8) == [2, 2]


def test_a_budget_too_small_has_no_allocation() -> None:
    assert allocate([{2: 0.0}, {2: 0.0}], 3) is None


@pytest.mark.parametrize(
    ("norms", "sizes"),
    [([1, 1], [4, 4]), ([3, 1], [6, 2]), ([100, 1], [7, 1]), ([0, 0], [4, 4]), ([1, 1, 1], [3, 3, 2])],
)
def test_readers_follow_norms_and_none_is_left_out(norms: list[float], sizes: list[int]) -> None:
    assert sizes_by_norm(np.array(norms, dtype=float), 8) == sizes
