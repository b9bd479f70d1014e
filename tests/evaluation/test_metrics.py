"""Intervals cover what they claim to."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gqkva_convert.errors import EvaluationError
from gqkva_convert.evaluation.metrics import Metric, bootstrap, mean, perplexity, ratio, spearman


@pytest.mark.parametrize("statistic", ["mean", "perplexity"])
def test_intervals_cover_the_truth(statistic: str) -> None:
    """Of 200 data sets whose truth is known, nearly 95 % have it inside their interval."""
    draw = np.random.default_rng(0)
    hits = 0
    for number in range(200):
        nats = draw.gamma(2.0, 1.5, 80)
        if statistic == "mean":
            low, high = bootstrap([nats], mean, number) or (0.0, 0.0)
            hits += low <= 3.0 <= high
        else:
            tokens = draw.integers(5, 30, 80).astype(float)
            low, high = bootstrap([nats * tokens, tokens], perplexity, number) or (0.0, 0.0)
            hits += low <= np.exp(3.0) <= high
    assert 0.90 <= hits / 200 <= 0.99


@pytest.mark.parametrize(("truth", "samples"), [(0.99, 30), (0.95, 30), (0.9, 10), (0.98, 100), (0.5, 50)])
def test_intervals_of_shares_cover_the_truth(truth: float, samples: int) -> None:
    """Where all answers are right, too, which resampling takes for certainty."""
    draw = np.random.default_rng(5)
    found = [
        Metric("accuracy", "higher", mean, [(draw.random(samples) < truth).astype(float)]).score()
        for _ in range(300)
    ]
    hits = sum(each.interval[0] <= truth <= each.interval[1] for each in found)
    assert hits / 300 >= 0.9
    assert all(each.interval[1] > each.interval[0] for each in found)


def test_a_metric_that_is_not_defined_is_refused() -> None:
    """Ranks of equal scores say nothing; JSON has no word for it either."""
    metric = Metric("Spearman correlation", "higher", spearman, [np.arange(4.0), np.ones(4)])
    with pytest.raises(EvaluationError, match="is not defined on these 4 samples"):
        metric.score()


def test_differences_are_paired() -> None:
    """Two models that stumble over the same samples differ by less than their intervals are wide."""
    draw = np.random.default_rng(1)
    hard = draw.gamma(2.0, 1.0, 200)
    metric = Metric("loss", "lower", mean, [hard + 0.1 + 0.01 * draw.normal(size=200)], [hard])
    found = metric.score()
    low, high = found.difference_interval
    assert found.difference == pytest.approx(0.1, abs=0.01)
    assert low < 0.1 < high
    assert high - low < 0.02 * (found.interval[1] - found.interval[0])


def test_the_seed_fixes_the_interval() -> None:
    values = np.random.default_rng(2).normal(size=50)
    assert bootstrap([values], mean, 3) == bootstrap([values], mean, 3)
    assert bootstrap([values], mean, 3) != bootstrap([values], mean, 4)


def test_one_sample_has_no_interval_and_equal_ones_a_point() -> None:
    assert bootstrap([np.ones(1)], mean) is None
    assert bootstrap([np.ones(5), np.ones(5)], ratio) == (1.0, 1.0)
    assert bootstrap([np.ones(5), np.ones(5)], spearman) is None  # ranks of equal values say nothing


def test_spearman_is_that_of_scipy() -> None:
    draw = np.random.default_rng(4)
    first = draw.normal(size=60).round(1)  # with ties
    second = first + draw.normal(size=60)
    assert spearman(first, second, axis=-1) == pytest.approx(stats.spearmanr(first, second).statistic)
