"""Whether a measurement fits into memory, estimated before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Share of the free memory that is used, and the fewest positions that a prompt is read in at once.
_USABLE, _SMALLEST_CHUNK = 0.9, 512


@dataclass(frozen=True)
class Needs:
    """What one model takes at one context and batch, beside its weights.

    Attributes:
        cache: Bytes of keys and values.
        working: Bytes of everything else while a number of positions is read at once.
    """

    cache: int
    working: Callable[[int], int]

    def total(self, chunk: int) -> int:
        return self.cache + self.working(chunk)


@dataclass(frozen=True)
class Fit:
    """How a row's models are measured.

    Attributes:
        together: Models whose caches are in memory at the same time, and whose rounds take turns.
        chunk: Positions of the prompt in one forward pass.
        skipped: Why a model is not measured, by name.
    """

    together: tuple[tuple[str, ...], ...]
    chunk: int
    skipped: Mapping[str, str] = field(default_factory=dict)


def fit(needs: Mapping[str, Needs], context: int, available: int | None, can_divide: bool) -> Fit:
    """Divide a row so that it fits.

    Args:
        needs: What each model takes.
        context: Positions of the prompt.
        available: Free bytes; None where nobody knows, and everything is tried.
        can_divide: Whether a prompt can be read in several passes.
    """
    names = tuple(needs)
    if available is None:
        return Fit((names,), context)
    usable = int(_USABLE * available)
    smallest = min(context, _SMALLEST_CHUNK) if can_divide else context
    skipped = {
        name: f"needs about {_gigabytes(need.total(smallest))} beside the weights; "
        f"{_gigabytes(available)} are free"
        for name, need in needs.items()
        if need.total(smallest) > usable
    }
    left = tuple(name for name in names if name not in skipped)
    if not left:
        return Fit((), context, skipped)
    chunk = context
    while chunk > smallest and any(needs[name].total(chunk) > usable for name in left):
        chunk = max(smallest, chunk // 2)
    both = sum(needs[name].cache for name in left) + max(needs[name].working(chunk) for name in left)
    together = (left,) if both <= usable else tuple((name,) for name in left)
    return Fit(together, chunk, skipped)


def working_bytes(
    config: Any, batch: int, context: int, itemsize: int, *, keeps_logits: bool, eager: bool, dynamic: bool
) -> Callable[[int], int]:
    """About what a forward pass takes beside weights and cache, by the positions it reads.

    Args:
        config: The model's configuration.
        batch: Sequences at once.
        context: Positions in the cache.
        itemsize: Bytes of a number.
        keeps_logits: Whether logits are computed for the last position alone.
        eager: Whether attention scores are kept for every head.
        dynamic: Whether a cache grows by copies.
    """
    text = getattr(config, "text_config", config)
    hidden = _number(text, ("hidden_size", "d_model", "n_embd", "dim"), 1024)
    inner = _number(text, ("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim"), 4 * hidden)
    heads = _number(text, ("num_attention_heads", "num_heads", "n_head"), 16)
    vocabulary = _number(text, ("vocab_size",), 0)
    has_bias = hasattr(text, "relative_attention_num_buckets")  # T5's, added to every head's scores
    layer = 2 * batch * context * hidden * itemsize  # keys and values of one layer, all heads

    def working(chunk: int) -> int:
        states = batch * chunk * (8 * hidden + 3 * inner) * itemsize
        logits = batch * vocabulary * (1 if keeps_logits else chunk) * (itemsize + 4)
        scores = 2 * batch * heads * chunk * context * 4 if eager or has_bias else 0
        # Behind a filled cache, a mask stands for causality, and kernels may repeat keys for the heads.
        masked = 5 * chunk * context + layer if chunk < context else 0
        return states + logits + scores + masked + (layer if dynamic else 0)

    return working


def _number(config: Any, names: tuple[str, ...], otherwise: int) -> int:
    return next(
        (int(getattr(config, name)) for name in names if isinstance(getattr(config, name, None), int)),
        otherwise,
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"
