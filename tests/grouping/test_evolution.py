"""QCQA's two stages give a front of groupings that can be used."""

from __future__ import annotations

import numpy as np
import pytest

from gqkva_convert.errors import LayoutError
from gqkva_convert.grouping.costs import mean_cost
from gqkva_convert.grouping.evolution import evolve

pytest.importorskip("pymoo")


@pytest.mark.parametrize("equal", [False, True])
def test_the_front_trades_error_for_heads(equal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point is a grouping of all heads whose error is the one stated; budgets pick the best within."""
    from gqkva_convert.grouping import evolution

    monkeypatch.setattr(evolution, "GENERATIONS", 15)
    random = np.random.default_rng(0)
    layers = [random.standard_normal((6, 4)) @ np.diag([3, 2, 1, 1]) for _ in range(3)]
    similarities = [heads @ heads.T for heads in layers]
    front = evolve(similarities, equal=equal, seed=0)
    for error, heads, choice in zip(front.errors, front.heads, front.choices, strict=True):
        assert sum(len(groups) for groups in choice) == heads
        costs = [sum(map(mean_cost(s), groups)) for s, groups in zip(similarities, choice, strict=True)]
        assert sum(costs) == pytest.approx(error)
        for groups in choice:
            assert sorted(head for group in groups for head in group) == list(range(6))
            assert not equal or len({len(group) for group in groups}) == 1
    assert min(front.heads) == 3
    chosen = front.within(9)
    assert sum(len(groups) for groups in chosen) <= 9
    with pytest.raises(LayoutError, match="no point of the front keeps 2 heads"):
        front.within(2)
