"""Losses over large vocabularies, a few positions at a time, so that no whole logits exist.

The gradient of a chunk is computed right after its loss, while its logits are there; nothing is computed
twice. Sums, not means: dividing by the number of positions is left to the caller, who knows how many there
are in all micro-batches and processes together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Logits of a chunk: what a CPU's cache holds, what keeps a GPU busy.
_CHUNK_ELEMENTS = {"cpu": 1 << 22}
_OTHER_CHUNK_ELEMENTS = 1 << 26

# Log-probability at and below which there is nothing, as where all tokens of a vocabulary are kept.
_NOTHING = -60.0

# Loss sums by term, from logits (rows, vocabulary) in float32 and the rows' numbers.
LogitLosses = Callable[[Tensor, slice], dict[str, Tensor]]


@dataclass(frozen=True)
class Head:
    """The map from hidden states to logits.

    Attributes:
        weight: ``(vocabulary, hidden)``.
        bias: ``(vocabulary,)`` or None.
        scale: What logits are multiplied by.
        softcap: Bound that logits approach (Gemma 2), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Compute logits in float32 or better, ``(rows, vocabulary)``."""
        weight = self.weight if weight is None else weight
        found = functional.linear(hidden, weight, self.bias if bias is None else bias)
        found = found if found.dtype == torch.float64 else found.float()
        if self.scale != 1.0:
            found = found * self.scale
        return found if self.softcap is None else torch.tanh(found / self.softcap) * self.softcap


def positions_at_once(device: torch.device, vocabulary: int) -> int:
    """Return the number of positions whose logits are in memory at once."""
    return max(16, _CHUNK_ELEMENTS.get(device.type, _OTHER_CHUNK_ELEMENTS) // vocabulary)


def chunked_losses(
    hidden: Tensor,
    head: Head,
    losses: LogitLosses,
    weights: dict[str, float],
    chunk_rows: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute losses of logits that are never all there at once.

    Args:
        hidden: Input of the head, ``(rows, hidden)``.
        head: The head; its gradients are computed where it wants them.
        losses: From logits of some rows to loss sums by term.
        weights: What each term counts.
        chunk_rows: Rows at a time; None for what suits the device.

    Returns:
        The weighted sum of the terms' sums, which can be differentiated, and each term's sum, which cannot.
    """
    if chunk_rows is None:
        chunk_rows = positions_at_once(hidden.device, head.weight.shape[0])
    names = [name for name, weight in weights.items() if weight]
    parameters = [head.weight] if head.bias is None else [head.weight, head.bias]

    def chunk(rows: Tensor, span: slice, *values: Tensor) -> tuple[Tensor, list[Tensor]]:
        found = losses(head.logits(rows, *values), span)
        total = torch.stack([weights[name] * found[name] for name in names]).sum()
        return total, [found[name].detach() for name in names]

    total, *sums = _Chunked.apply(chunk, chunk_rows, len(names), hidden, *parameters)  # type: ignore[no-untyped-call]
    return total, dict(zip(names, sums, strict=True))


class _Chunked(torch.autograd.Function):
    """Loss and gradients chunk by chunk; backward only hands the gradients out."""

    @staticmethod
    def forward(
        ctx: Any, chunk: Callable[..., Any], chunk_rows: int, terms: int, hidden: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[3:]
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        # Sums over many chunks are kept in float32, whatever the dtype of the weights.
        sums = [
            torch.zeros_like(parameter, dtype=exact) if want else None
            for parameter, want in zip(parameters, wanted[1:], strict=True)
        ]
        hidden_gradient = torch.empty_like(hidden) if wanted[0] else None
        totals = [torch.zeros((), dtype=exact, device=hidden.device) for _ in range(terms + 1)]
        # The same leaves for all chunks: autocast keeps a cast copy of every leaf it meets.
        leaves = [
            parameter.detach().requires_grad_(want)
            for parameter, want in zip(parameters, wanted[1:], strict=True)
        ]
        for start in range(0, len(hidden), chunk_rows):
            span = slice(start, start + chunk_rows)
            inputs = [hidden[span].detach().requires_grad_(wanted[0]), *leaves]
            with torch.enable_grad() if any(wanted) else torch.no_grad():
                total, found = chunk(inputs[0], span, *inputs[1:])
            for place, value in enumerate([total.detach(), *found]):
                totals[place] += value
            if not any(wanted):
                continue
            asked = [value for value in inputs if value.requires_grad]
            gradients = iter(torch.autograd.grad(total, asked))
            if hidden_gradient is not None:
                hidden_gradient[span] = next(gradients)
            for place, summed in enumerate(sums):
                if summed is not None:
                    sums[place] = summed.add_(next(gradients))
        ctx.gradients = (
            hidden_gradient,
            [
                None if summed is None else summed.to(parameter.dtype)
                for summed, parameter in zip(sums, parameters, strict=True)
            ],
        )
        ctx.mark_non_differentiable(*totals[1:])
        return tuple(totals)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Any, ...]:
        hidden, parameters = ctx.gradients
        ctx.gradients = None
        return (
            None,
            None,
            None,
            None if hidden is None else hidden * gradient.to(hidden.dtype),
            *(None if value is None else value.mul_(gradient.to(value.dtype)) for value in parameters),
        )


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross-entropies of labels, nats.

    Args:
        logits: ``(rows, vocabulary)``.
        labels: ``(rows,)``.
    """
    return functional.cross_entropy(logits, labels, reduction="sum")


def teacher_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Sum KL(teacher || student) over rows, nats, times the temperature squared.

    Hinton, Vinyals and Dean, 2015, arXiv 1503.02531, section 2: the square keeps gradients as large.
    Both models' logits are ``(rows, vocabulary)``.
    """
    student = functional.log_softmax(logits / temperature, dim=-1)
    target = functional.log_softmax(teacher / temperature, dim=-1)
    divergence = functional.kl_div(student, target, reduction="sum", log_target=True)
    return divergence * temperature**2


def top_divergence(logits: Tensor, values: Tensor, indices: Tensor, temperature: float) -> Tensor:
    """Sum KL(teacher || student) over rows where only the teacher's likeliest tokens are known.

    All other tokens count as one: never more than the whole divergence, and equal to it where the teacher
    gives them the student's proportions.

    Args:
        logits: Student's, ``(rows, vocabulary)``.
        values: Teacher's log-probabilities at the temperature, ``(rows, k + 1)``, all others' together last.
        indices: The tokens, ``(rows, k)``.
        temperature: Divides the student's logits.
    """
    student = functional.log_softmax(logits / temperature, dim=-1)
    # 1 - sum would lose all digits where little is left; logsumexp does not.
    others = student.scatter(-1, indices, float("-inf")).logsumexp(-1, keepdim=True)
    found = torch.cat([student.gather(-1, indices), others], dim=-1)
    missing = torch.where(values > _NOTHING, values - found, 0.0)
    return (values.exp() * missing).sum() * temperature**2


def relative_errors(found: Sequence[Tensor], wanted: Sequence[Tensor], valid: Tensor | None) -> Tensor:
    """Sum over positions the mean over layers of ``|found - wanted|^2 / |wanted|^2``.

    Args:
        found: A layer's states each, ``(batch, positions, hidden)``.
        wanted: The teacher's.
        valid: Which positions are not padding; None for all.
    """
    total = torch.zeros((), device=found[0].device)
    for ours, theirs in zip(found, wanted, strict=True):
        ours, theirs = ours.float(), theirs.float()
        error = (ours - theirs).square().sum(-1) / theirs.square().sum(-1).clamp(min=1e-12)
        total = total + (error if valid is None else error * valid).sum()
    return total / max(len(found), 1)
