"""Attention scores of a block that is run on its own, seen through transformers' attention interface."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Name of the attention function that records its calls; the block's own does the work.
INTERFACE = "gqkva:observed"
_OWN = "gqkva_own_attention"
_seen: ContextVar[list[AttentionCall] | None] = ContextVar("seen", default=None)


@dataclass(frozen=True)
class AttentionCall:
    """Arguments of an attention function, for the query positions that are kept.

    Attributes:
        query: ``(batch, heads, positions, head_dim)``, turned by its position.
        key: ``(batch, key heads, key positions, head_dim)``, likewise.
        allowed: Keys that each position may attend to, ``(batch, heads, positions, key positions)``; axes of
            1 where all share them.
        scaling: Factor of every score.
    """

    query: Tensor
    key: Tensor
    allowed: Tensor
    scaling: float

    def rows(self, positions: Tensor) -> AttentionCall:
        """Return the call with some query positions alone."""
        allowed = self.allowed[:, :, positions] if self.allowed.shape[2] > 1 else self.allowed
        return AttentionCall(self.query[:, :, positions], self.key, allowed, self.scaling)

    @property
    def scores(self) -> Tensor:
        """Return scaled scores less each row's mean over allowed keys, which the softmax ignores.

        Returns:
            ``(batch, heads, positions, key positions)``, 0 at keys that are not allowed.
        """
        key = self.key.repeat_interleave(self.query.shape[1] // self.key.shape[1], 1)
        scores = (self.query @ key.transpose(2, 3) * self.scaling).masked_fill(~self.allowed, 0.0)
        count = self.allowed.sum(-1, keepdim=True).clamp(min=1)
        return (scores - scores.sum(-1, keepdim=True) / count).masked_fill(~self.allowed, 0.0)


def score_error(ours: AttentionCall, theirs: AttentionCall, kept: Tensor | None = None) -> Tensor:
    """Return the squared error of scores relative to the original's energy.

    Args:
        ours: Call of the merged heads.
        theirs: Call of the original block for the same inputs.
        kept: Positions that count, ``(batch, positions)``; None for all.
    """
    original = theirs.scores
    missing = (ours.scores - original).square().sum((1, 3))
    energy = original.square().sum((1, 3))
    if kept is not None:
        missing, energy = missing * kept, energy * kept
    return missing.sum() / energy.sum().clamp(min=1e-30)


def watch(module: nn.Module) -> None:
    """Let `observing` record a block that calls transformers' attention interface."""
    config: Any = getattr(module, "config", None)
    if config is None:
        return
    setattr(config, _OWN, config._attn_implementation)
    config._attn_implementation = INTERFACE


@contextmanager
def observing() -> Iterator[list[AttentionCall]]:
    """Collect the calls of attention functions of watched blocks; empty if there are none."""
    found: list[AttentionCall] = []
    token = _seen.set(found)
    try:
        yield found
    finally:
        _seen.reset(token)


def _record_call(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Any]:
    """Run the block's own attention function, and record the call if it is being observed."""
    found = _seen.get()
    if found is not None:
        scaling = options.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        allowed = _allowed(module, query, key, attention_mask, options.get("is_causal"))
        found.append(AttentionCall(query, key, allowed, scaling))
    own = getattr(module.config, _OWN)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    result: tuple[Tensor, Any] = ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)(
        module, query, key, value, attention_mask, **options
    )
    return result


def _allowed(module: Any, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool | None) -> Tensor:
    """Return the keys that may be attended to; an additive mask forbids where it is hugely negative."""
    positions, keys = query.shape[2], key.shape[2]
    if mask is not None:
        mask = mask[..., :keys]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(torch.float16).min
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    everything = torch.ones(1, 1, positions, keys, dtype=torch.bool, device=query.device)
    return everything.tril() if causal and positions > 1 else everything


ALL_ATTENTION_FUNCTIONS.register(INTERFACE, _record_call)
