"""The loss must be the one transformers computes, whatever the batches."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_models
import torch

from gqkva_convert.evaluation.perplexity import language_loss


def test_the_loss_is_that_of_transformers_token_by_token(llama: Path) -> None:
    """Off-by-one targets and padding that counts are the classic mistakes of perplexity."""
    model = tiny_models.load(llama, "LlamaForCausalLM")
    generator = torch.Generator().manual_seed(2)
    lengths = (2, 5, 7, 7, 11, 1)
    sequences = [torch.randint(37, (length,), generator=generator).tolist() for length in lengths]
    total, count = 0.0, 0
    for sequence in sequences[:-1]:  # one token alone predicts nothing
        ids = torch.tensor([sequence])
        with torch.inference_mode():
            loss = model(input_ids=ids, labels=ids).loss.item()
        total += loss * (len(sequence) - 1)
        count += len(sequence) - 1
    for batch_tokens in (1, 16, 1000):
        found = language_loss(model, sequences, batch_tokens=batch_tokens)
        assert found.tokens == count
        assert found.nats_per_token == pytest.approx(total / count, rel=1e-5)
        assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-4)


def test_progress_counts_every_predicted_token(llama: Path) -> None:
    """A bar that stops at 93 % looks like a hang."""
    model = tiny_models.load(llama, "LlamaForCausalLM")
    seen: list[int] = []
    loss = language_loss(model, [[1, 2, 3], [4, 5], [6, 7, 8, 9]], batch_tokens=4, progress=seen.append)
    assert sum(seen) == loss.tokens == 6
