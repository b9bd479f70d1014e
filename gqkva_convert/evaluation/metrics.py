"""Metrics over samples, with bootstrap intervals; of two models on the same samples, paired ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gqkva_convert.errors import EvaluationError
from gqkva_convert.records.evaluation import Interval, Score

Column = np.ndarray[Any, np.dtype[np.float64]]
Statistic = Callable[..., Any]

RESAMPLES = 2000
CONFIDENCE = 0.95
# Numbers that a bootstrap holds at once.
_HELD = 5_000_000


@dataclass(frozen=True)
class Metric:
    """One number, and what it is computed from sample by sample.

    Attributes:
        name: Its name in results.
        better: ``"lower"`` or ``"higher"``.
        statistic: From columns to the number; takes ``axis``, the samples'.
        columns: Arrays of shape ``(samples,)``.
        against: The same of the other model; None where the metric is of both together, or there is no other.
    """

    name: str
    better: Literal["lower", "higher"]
    statistic: Statistic
    columns: Sequence[Column]
    against: Sequence[Column] | None = None

    def score(self, seed: int = 0) -> Score:
        """Compute the number with its interval, beside the other model's and the difference of both.

        Raises:
            EvaluationError: It is not finite, or not defined on these samples.
        """
        for columns, whose in ((self.columns, "the model"), (self.against or (), "that of --against")):
            if not all(np.isfinite(column).all() for column in columns):
                raise EvaluationError(
                    f"{self.name}: {whose} gives answers that are not finite; its weights or the dtype "
                    "overflow (gqkva verify looks for such weights)"
                )
        value, other = self._value(self.columns), None
        against_interval = difference_interval = None
        if self.against is not None:
            other = self._value(self.against)
            against_interval = self._interval(self.against, seed)
            difference_interval = self._difference_interval(self.against, seed)
        return Score(
            metric=self.name,
            value=value,
            interval=self._interval(self.columns, seed),
            against=other,
            against_interval=against_interval,
            difference=None if other is None else value - other,
            difference_interval=difference_interval,
            better=self.better,
        )

    def _difference_interval(self, against: Sequence[Column], seed: int) -> Interval | None:
        count = len(self.columns)

        def difference(*columns: Column, axis: int) -> Any:
            ours, theirs = columns[:count], columns[count:]
            return self.statistic(*ours, axis=axis) - self.statistic(*theirs, axis=axis)

        return bootstrap([*self.columns, *against], difference, seed)

    def _value(self, columns: Sequence[Column]) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(self.statistic(*columns, axis=-1))
        if not np.isfinite(value):
            raise EvaluationError(
                f"{self.name} is not defined on these {len(columns[0])} samples, which are too few or all "
                "alike; measure on more or others"
            )
        return value

    def _interval(self, columns: Sequence[Column], seed: int) -> Interval | None:
        if self.statistic is mean and len(columns[0]) > 1 and np.isin(columns[0], (0, 1)).all():
            return share_interval(columns[0])
        return bootstrap(columns, self.statistic, seed)


def share_interval(hits: Column) -> Interval:
    """Return the 95 % interval of a share (Wilson, 1927), which has width even if all or none are hits.

    Args:
        hits: 1 or 0 a sample, ``(samples,)``.
    """
    from scipy.stats import binomtest

    found = binomtest(int(hits.sum()), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def bootstrap(columns: Sequence[Column], statistic: Statistic, seed: int = 0) -> Interval | None:
    """Return a 95 % percentile interval of 2,000 resamples (Efron, 1979); None below two samples.

    Args:
        columns: Arrays of shape ``(samples,)`` that are resampled together.
        statistic: Function of the columns along ``axis``.
        seed: Seed of the resampling.
    """
    import warnings

    from scipy.stats import bootstrap as scipy_bootstrap

    samples = len(columns[0])
    if samples < 2:
        return None
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the statistic is not a number there is no interval
        found = scipy_bootstrap(
            tuple(columns),
            statistic,
            n_resamples=RESAMPLES,
            batch=max(1, _HELD // samples),
            vectorized=True,
            paired=True,
            confidence_level=CONFIDENCE,
            method="percentile",
            **_random_state(seed),
        )
    low, high = float(found.confidence_interval.low), float(found.confidence_interval.high)
    return (low, high) if np.isfinite([low, high]).all() else None


def _random_state(seed: int) -> dict[str, Any]:
    """Return the seed under its keyword, `rng` since SciPy 1.15."""
    import inspect

    from scipy.stats import bootstrap as scipy_bootstrap

    name = "rng" if "rng" in inspect.signature(scipy_bootstrap).parameters else "random_state"
    return {name: np.random.default_rng(seed)}


def ratio(numerator: Column, denominator: Column, *, axis: int) -> Any:
    """Return a mean over parts of samples: sums of a numerator over sums of a denominator."""
    return numerator.sum(axis=axis) / denominator.sum(axis=axis)


def perplexity(nats: Column, tokens: Column, *, axis: int) -> Any:
    """Return exp of the mean loss per token."""
    return np.exp(ratio(nats, tokens, axis=axis))


def mean(values: Column, *, axis: int) -> Any:
    """Return the mean over samples."""
    return values.mean(axis=axis)


def spearman(first: Column, second: Column, *, axis: int) -> Any:
    """Return the correlation of ranks (Spearman, 1904)."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=axis) for values in (first, second)]
    centred = [rank - rank.mean(axis=axis, keepdims=True) for rank in ranks]
    norms = [np.sqrt((rank**2).sum(axis=axis)) for rank in centred]
    return (centred[0] * centred[1]).sum(axis=axis) / (norms[0] * norms[1])
