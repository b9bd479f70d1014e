"""Losses in chunks equal losses of whole logits, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gqkva_convert.uptraining.objectives.losses import (
    Head,
    chunked_losses,
    relative_errors,
    task_loss,
    teacher_divergence,
    top_divergence,
)

ROWS, WIDTH, TOKENS = 23, 7, 31


def tensors(*, bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randn(TOKENS, dtype=torch.float64, requires_grad=True) if bias else None


@pytest.mark.parametrize("chunk_rows", [1, 5, 23, 100])
@pytest.mark.parametrize(("bias", "scale", "softcap"), [(False, 1.0, None), (True, 0.5, 3.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_chunks_equal_the_whole(
    chunk_rows: int, bias: bool, scale: float, softcap: float | None, temperature: float
) -> None:
    """Cross-entropy and divergence in float64, with every kind of head."""
    hidden, weight, offset = tensors(bias=bias)
    labels, teacher = torch.randint(TOKENS, (ROWS,)), torch.randn(ROWS, TOKENS, dtype=torch.float64)
    weights = {"task": 0.3, "kl": 0.7}

    def losses(logits: Tensor, span: slice) -> dict[str, Tensor]:
        return {
            "task": task_loss(logits, labels[span]),
            "kl": teacher_divergence(logits, teacher[span], temperature),
        }

    total, sums = chunked_losses(hidden, Head(weight, offset, scale, softcap), losses, weights, chunk_rows)
    (3 * total).backward()
    inputs = [value for value in (hidden, weight, offset) if value is not None]
    found = [value.grad for value in inputs]
    logits = hidden @ weight.T + (0 if offset is None else offset)
    logits = logits * scale
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    student, target = (logits / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    task = -logits.log_softmax(-1)[torch.arange(ROWS), labels].sum()
    divergence = (target.exp() * (target - student)).sum() * temperature**2
    wanted = torch.autograd.grad(3 * (0.3 * task + 0.7 * divergence), inputs)
    torch.testing.assert_close(sums["task"], task.detach())
    torch.testing.assert_close(sums["kl"], divergence.detach())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_frozen_head_gets_no_gradient() -> None:
    """As where only attention is trained."""
    hidden, weight, _ = tensors(bias=False)
    frozen = weight.detach()
    total, _ = chunked_losses(
        hidden, Head(frozen), lambda logits, span: {"task": logits.square().sum()}, {"task": 1.0}, 4
    )
    total.backward()
    torch.testing.assert_close(hidden.grad, 2 * hidden.detach() @ frozen.T @ frozen)


def test_bfloat16_sums_are_kept_in_float32() -> None:
    """64 chunks summed in bfloat16 would lose small ones."""
    torch.manual_seed(0)
    hidden = torch.randn(256, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(16, 8, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(16, (256,))
    grads = []
    for chunk_rows in (4, 256):
        weight.grad = None
        total, _ = chunked_losses(
            hidden,
            Head(weight),
            lambda logits, span: {"task": task_loss(logits, labels[span])},
            {"task": 1.0},
            chunk_rows,
        )
        total.backward()
        assert weight.grad is not None
        grads.append(weight.grad.float())
    assert float((grads[0] - grads[1]).norm() / grads[1].norm()) < 0.01


def test_all_of_a_vocabulary_as_likeliest_tokens_is_the_whole_divergence() -> None:
    """With fewer it is never more (data processing), and its gradient is right."""
    torch.manual_seed(0)
    logits = torch.randn(9, TOKENS, dtype=torch.float64, requires_grad=True)
    teacher = 2 * torch.randn(9, TOKENS, dtype=torch.float64)
    whole = teacher_divergence(logits, teacher, 1.0)
    for count in (TOKENS, 8, 1):
        top = teacher.topk(count)
        others = teacher.scatter(-1, top.indices, float("-inf")).logsumexp(-1, keepdim=True)
        values = torch.cat([top.values, others], -1).log_softmax(-1)
        found = top_divergence(logits, values, top.indices, 1.0)
        if count == TOKENS:
            torch.testing.assert_close(found, whole)
        else:
            assert 0 < float(found.detach()) < float(whole.detach())
        assert torch.autograd.gradcheck(
            lambda value, values=values, top=top: top_divergence(value, values, top.indices, 2.0), (logits,)
        )


def test_padding_has_no_error() -> None:
    ours, theirs = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    valid = torch.tensor([[1, 1, 0], [1, 0, 0]])
    wanted = ((ours - theirs).square().sum(-1) / theirs.square().sum(-1) * valid).sum()
    torch.testing.assert_close(relative_errors([ours, ours], [theirs, theirs], valid), wanted)
