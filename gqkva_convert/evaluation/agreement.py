"""Scores of answers, and the divergence and agreement of two models' distributions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gqkva_convert.errors import EvaluationError
from gqkva_convert.evaluation.metrics import Metric, perplexity, ratio

# Distributions compared at once: the numbers of their logits.
_NUMBERS = 1 << 24


@dataclass
class AnswerScores:
    """Measurements of answers, summed within each sample; columns grow by `add`.

    Attributes:
        unit: Unit of an answer: a token, an image or a text.
        columns: A list with a number a sample for each of: ``answers``, how many it holds; ``nats``,
            cross-entropy of the right choices; ``right`` and ``right_five``, answers whose likeliest
            choice, or one of whose five likeliest, is right; these three of the other model as
            ``against_...``; ``divergence``, KL(other || this) in nats; ``first``, answers whose likeliest
            choice is the other model's; ``five``, the share of its five likeliest choices that are among
            this model's.
    """

    unit: str
    columns: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, unit: str, samples: Iterable[dict[str, float]]) -> AnswerScores:
        """Make scores of the sums of samples, in their order."""
        found = cls(unit)
        for sample in samples:
            found.add(sample)
        return found

    def add(self, sample: dict[str, float]) -> None:
        """Take the sums of one sample."""
        for name, value in sample.items():
            self.columns.setdefault(name, []).append(value)

    def column(self, name: str) -> Any:
        return np.asarray(self.columns[name], dtype=np.float64)

    @property
    def answers(self) -> int:
        return int(sum(self.columns.get("answers", [])))

    def gathered(self, owners: Sequence[int]) -> AnswerScores:
        """Sum over the samples of each owner, such as a text cut into several."""
        places = np.unique(owners, return_inverse=True)[1]
        return AnswerScores(
            self.unit,
            {name: np.bincount(places, weights=values).tolist() for name, values in self.columns.items()},
        )

    def metric(
        self, name: str, better: Literal["lower", "higher"], column: str, statistic: Any = ratio
    ) -> Metric:
        """Make a metric over answers, with the other model's if both were measured."""
        count = self.column("answers")
        other = f"against_{column}"
        against = [self.column(other), count] if other in self.columns else None
        return Metric(name, better, statistic, [self.column(column), count], against)

    def likelihood(self) -> list[Metric]:
        return [
            self.metric("perplexity", "lower", "nats", perplexity),
            self.metric(f"nats per {self.unit}", "lower", "nats"),
        ]

    def accuracy(self) -> list[Metric]:
        found = [self.metric("top-1 accuracy", "higher", "right")]
        if "right_five" in self.columns:
            found.append(self.metric("top-5 accuracy", "higher", "right_five"))
        return found

    def agreement(self) -> list[Metric]:
        """Return divergence from the other model and agreement with it."""
        if "divergence" not in self.columns:
            return []
        found = [
            self.metric("KL from the original", "lower", "divergence"),
            self.metric("top-1 agreement", "higher", "first"),
        ]
        if "five" in self.columns:
            found.append(self.metric("top-5 agreement", "higher", "five"))
        return found


def sample_sums(scores: dict[str, Any], counts: Sequence[int]) -> list[dict[str, float]]:
    """Sum scores within samples, whose answers follow each other, for `AnswerScores.add`.

    Args:
        scores: Tensors of shape ``(answers,)`` by name.
        counts: Answers of each sample.
    """
    import torch

    parts = {name: torch.split(values, list(counts)) for name, values in scores.items()}
    return [
        {"answers": float(count), **{name: float(part[number].sum()) for name, part in parts.items()}}
        for number, count in enumerate(counts)
    ]


def score_answers(logits: Sequence[Any], targets: Any, *, accuracy: bool) -> dict[str, Any]:
    """Score answers one by one, in float32.

    Args:
        logits: The model's, ``(answers, choices)``, and the other model's where there is one.
        targets: The right choices, shape ``(answers,)``.
        accuracy: Compare the likeliest choices with the right ones.

    Returns:
        Float64 tensors of shape ``(answers,)`` by name, as `AnswerScores` lists them.

    Raises:
        EvaluationError: The models have other numbers of choices.
    """
    import torch

    own, *others = logits
    other = others[0].to(own.device) if others else None
    if other is not None and other.shape[-1] != own.shape[-1]:
        raise EvaluationError(
            f"the models choose among {own.shape[-1]} and {other.shape[-1]} answers; --against names "
            "the model it was made from"
        )
    step = max(1, _NUMBERS // own.shape[-1])
    parts: list[dict[str, Any]] = []
    for start in range(0, len(own), step):
        some = slice(start, start + step)
        theirs = None if other is None else other[some]
        parts.append(_score(own[some], theirs, targets[some].to(own.device), accuracy))
    return {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}


def _score(logits: Any, against: Any, targets: Any, accuracy: bool) -> dict[str, Any]:
    import torch.nn.functional as functional

    own = logits.float()
    found = {"nats": functional.cross_entropy(own, targets, reduction="none")}
    if not accuracy and against is None:
        return found
    best, top = _likeliest(own)
    if accuracy:
        found |= _hits("", best, top, targets)
    if against is None:
        return found
    other = against.float()
    other_best, other_top = _likeliest(other)
    ours, theirs = own.log_softmax(-1), other.log_softmax(-1)
    divergence = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    found |= {
        "against_nats": functional.nll_loss(theirs, targets, reduction="none"),
        "divergence": divergence.clamp(min=0),  # rounding
        "first": (best == other_best).float(),
    }
    if accuracy:
        found |= _hits("against_", other_best, other_top, targets)
    if top is not None and other_top is not None:
        found["five"] = (top[:, :, None] == other_top[:, None, :]).any(-1).float().mean(-1)
    return found


def _likeliest(logits: Any) -> tuple[Any, Any]:
    """Return the likeliest choice, and the five likeliest of more than five choices."""
    top = logits.topk(5, dim=-1).indices if logits.shape[-1] > 5 else None
    return logits.argmax(-1), top


def _hits(prefix: str, best: Any, top: Any, targets: Any) -> dict[str, Any]:
    found = {f"{prefix}right": (best == targets).float()}
    if top is not None:
        found[f"{prefix}right_five"] = (top == targets[:, None]).any(-1).float()
    return found
