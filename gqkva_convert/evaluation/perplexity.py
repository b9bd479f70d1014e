"""Causal language models: cross-entropy of texts, and agreement with another model token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gqkva_convert.data.sequences import pad
from gqkva_convert.evaluation.agreement import AnswerScores, sample_sums, score_answers
from gqkva_convert.evaluation.windows import Window
from gqkva_convert.modeling.loading import WITHOUT_ADAPTER
from gqkva_convert.modeling.log_levels import quiet_transformers
from gqkva_convert.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path


def score_windows(
    model: Any,
    against: Any,
    windows: Sequence[Window],
    *,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> AnswerScores:
    """Score the targets of windows.

    Args:
        model: A causal language model.
        against: Another one with the same tokens; None for none.
        windows: Windows that both read.
        batch_tokens: Most tokens in one forward pass, padding included; at least one window is read.
        progress: Called with the number of tokens just predicted.

    Returns:
        Sums within each window, in the windows' order.
    """
    import torch

    order = sorted(range(len(windows)), key=lambda place: len(windows[place].inputs))
    samples: list[dict[str, float]] = [{} for _ in windows]
    start = 0
    with torch.inference_mode():
        while start < len(order):
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(windows[order[end]].inputs) <= batch_tokens:
                end += 1
            places = order[start:end]
            some = [windows[place] for place in places]
            counts = [window.answers for window in some]
            sums = sample_sums(_scores(model, against, some), counts)
            for place, sample in zip(places, sums, strict=True):
                samples[place] = sample
            start = end
            if progress is not None:
                progress(sum(counts))
    return AnswerScores.of("token", samples)


def _scores(model: Any, against: Any, windows: Sequence[Window]) -> dict[str, Any]:
    """Score all targets of a batch, window after window."""
    import torch

    ids, present = pad([window.inputs for window in windows], 0)
    ends = present.sum(1, keepdim=True)
    begins = ends - torch.tensor([[len(window.targets)] for window in windows])
    places = torch.arange(ids.shape[1])
    wanted = (begins <= places) & (places < ends)
    targets = torch.tensor([token for window in windows for token in window.targets])
    if any(window.counted is not None for window in windows):
        counted = torch.tensor(
            [flag for window in windows for flag in window.counted or [True] * len(window.targets)]
        )
        wanted[wanted.clone()] = counted
        targets = targets[counted]
    # Padding is on the right, where causal attention never looks: no mask is needed.
    logits = [
        network(input_ids=ids.to(network.device), use_cache=False).logits
        for network in (model, against)
        if network is not None
    ]
    # Most batches are full: their logits are taken as they are, not copied.
    full = bool(wanted.all())
    chosen = [found.flatten(0, 1) if full else found[wanted.to(found.device)] for found in logits]
    return score_answers(chosen, targets, accuracy=False)


@dataclass(frozen=True)
class LanguageLoss:
    """Loss of a model over predicted tokens."""

    nats_per_token: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token)


def language_loss(
    model: Any,
    sequences: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> LanguageLoss:
    """Compute a causal language model's cross-entropy over independent sequences of token ids.

    Each must fit the model's positions; ``batch_tokens`` and ``progress`` are those of `score_windows`.

    Returns:
        The loss over all tokens but each sequence's first, from float32 logits.
    """
    windows = [Window(list(ids[:-1]), list(ids[1:])) for ids in sequences if len(ids) > 1]
    scores = score_windows(model, None, windows, batch_tokens=batch_tokens, progress=progress)
    nats = sum(scores.columns.get("nats", []))
    return LanguageLoss(nats / max(scores.answers, 1), scores.answers)


def load_causal_lm(folder: Path) -> Any:
    """Load a checkpoint for measuring: stock transformers, float32, no remote code."""
    import torch
    import transformers

    quiet_transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, **WITHOUT_ADAPTER
    )
    return model.eval()
