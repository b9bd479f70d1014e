"""Cross-entropy and perplexity of causal language models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class LanguageLoss:
    """How well a model predicts tokens.

    Attributes:
        nats_per_token: Mean cross-entropy over all predicted tokens.
        tokens: How many were predicted; the first of each sequence is not.
    """

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
    progress: Callable[[int], None] | None = None,
) -> LanguageLoss:
    """Cross-entropy of a causal language model over independent sequences.

    Args:
        model: A transformers model with a language-modelling head.
        sequences: Token ids; each sequence stands alone and must fit the model's positions.
        batch_tokens: Most tokens, padding included, in one forward pass.
        progress: Called with the number of tokens just predicted.

    Returns:
        The loss over all tokens but each sequence's first, from float32 logits.
    """
    import torch
    import torch.nn.functional as functional

    ordered = sorted((sequence for sequence in sequences if len(sequence) > 1), key=len)
    total, tokens, start = 0.0, 0, 0
    with torch.inference_mode():
        while start < len(ordered):
            end = start + 1
            while end < len(ordered) and (end + 1 - start) * len(ordered[end]) <= batch_tokens:
                end += 1
            length = len(ordered[end - 1])
            ids = torch.zeros(end - start, length, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, sequence in enumerate(ordered[start:end]):
                ids[row, : len(sequence)] = torch.tensor(sequence)
                mask[row, : len(sequence)] = 1
            ids, mask = ids.to(model.device), mask.to(model.device)
            # Padding stands on the right, where causal attention never looks: no mask is needed.
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
            total += functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
            counted = int(mask[:, 1:].sum())
            tokens += counted
            start = end
            if progress is not None:
                progress(counted)
    return LanguageLoss(total / max(tokens, 1), tokens)


def load_causal_lm(folder: Path) -> Any:
    """Load a checkpoint for measuring: stock transformers, float32, no remote code."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    return model.eval()
