"""Estimates of the memory that a measurement takes, made before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gqkva_convert.evaluation.speed.settings import BenchSettings
from gqkva_convert.evaluation.speed.workloads import DECODER, ENCODER_DECODER, keeps_logits, kind_of
from gqkva_convert.source.model import SourceModel
from gqkva_convert.units import human_bytes

# Share of the free memory that is used, and the fewest positions that a prompt is read in at once.
_USABLE, _SMALLEST_CHUNK = 0.9, 512


@dataclass(frozen=True)
class Needs:
    """Memory that one model takes at one context and batch, beside its weights."""

    cache: int
    working: Callable[[int], int]

    def total(self, chunk: int) -> int:
        return self.cache + self.working(chunk)


@dataclass(frozen=True)
class Fit:
    """Division of a row's models over memory.

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
        needs: Needs of each model.
        context: Positions of the prompt.
        available: Free bytes; None if unknown, and everything is tried.
        can_divide: Whether a prompt can be read in several passes.
    """
    names = tuple(needs)
    if available is None:
        return Fit((names,), context)
    usable = int(_USABLE * available)
    smallest = min(context, _SMALLEST_CHUNK) if can_divide else context
    skipped = {
        name: f"needs about {human_bytes(need.total(smallest))} beside the weights; "
        f"{human_bytes(available)} are free"
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


def estimate(source: SourceModel, model: Any, context: int, batch: int, settings: BenchSettings) -> Needs:
    """Estimate the memory that a model takes at one context and batch."""
    kind, itemsize, cache = kind_of(model), getattr(torch, settings.dtype).itemsize, 0
    if kind == DECODER:
        cache = context * _numbers_per_position(source, "self")
    elif kind == ENCODER_DECODER:
        cache = context * _numbers_per_position(source, "cross")
        cache += (1 + settings.new_tokens) * _numbers_per_position(source, "self")
    return Needs(batch * cache * itemsize, _working_bytes(model, batch, context, itemsize, settings))


def _numbers_per_position(source: SourceModel, cache: str) -> int:
    """Count the key and value elements of a position in the cache of ``self`` or ``cross`` attention."""
    return sum(
        (block.layout.num_key_heads + block.layout.num_value_heads) * block.layout.head_dim
        for block in source.blocks
        if block.attention.cache == cache
    )


def _working_bytes(
    model: Any, batch: int, context: int, itemsize: int, settings: BenchSettings
) -> Callable[[int], int]:
    """Estimate the memory of a forward pass beside weights and cache, by the positions it reads."""
    text = getattr(model.config, "text_config", model.config)
    hidden = _number(text, ("hidden_size", "d_model", "n_embd", "dim"), 1024)
    inner = _number(text, ("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim"), 4 * hidden)
    heads = _number(text, ("num_attention_heads", "num_heads", "n_head"), 16)
    vocabulary = _number(text, ("vocab_size",), 0)
    has_bias = hasattr(text, "relative_attention_num_buckets")  # T5's, added to every head's scores
    keeps_last = keeps_logits(model)
    keeps_scores = settings.attn_implementation == "eager" or has_bias
    layer = 2 * batch * context * hidden * itemsize  # keys and values of one layer, all heads
    grown = layer if settings.cache == "dynamic" else 0  # a dynamic cache grows by copies

    def working(chunk: int) -> int:
        states = batch * chunk * (8 * hidden + 3 * inner) * itemsize
        logits = batch * vocabulary * (1 if keeps_last else chunk) * (itemsize + 4)
        scores = 2 * batch * heads * chunk * context * 4 if keeps_scores else 0
        # Behind a filled cache, causality needs a mask, and kernels may repeat keys for the heads.
        masked = 5 * chunk * context + layer if chunk < context else 0
        return states + logits + scores + masked + grown

    return working


def _number(config: Any, names: tuple[str, ...], otherwise: int) -> int:
    return next(
        (int(getattr(config, name)) for name in names if isinstance(getattr(config, name, None), int)),
        otherwise,
    )
