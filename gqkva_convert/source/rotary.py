"""Rotary planes of a block: their features, frequencies and context."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.errors import FamilyError
from gqkva_convert.source.model import Block, SourceModel, attention_config
from gqkva_convert.source.rope import rope_settings, stored_settings
from gqkva_convert.source.stock import stock_config
from gqkva_convert.transforms.rotary_averages import Turning, make_turning, still

# Longer contexts are averaged over as if they ended here: distant pairs are most of them and matter least.
MAX_CONTEXT = 8192


def rotary_fraction(config: dict[str, Any], default: float) -> float:
    """Return the share of ``head_dim`` that turns, as the configuration or the family says.

    Raises:
        FamilyError: The configured share is not from 0 to 1.
    """
    nested = stored_settings(config).get("partial_rotary_factor")
    said = (nested, config.get("partial_rotary_factor"), config.get("rotary_pct"), default)
    fraction = next(value for value in said if isinstance(value, (int, float)))
    if not 0 <= fraction <= 1:
        raise FamilyError(f"config.json: partial_rotary_factor must be from 0 to 1, found {fraction}")
    return float(fraction)


@dataclass(frozen=True)
class RotaryPlanes:
    """The rotary planes of a block's heads, and the configuration that says how they turn.

    Attributes:
        head_dim: Features per head.
        first: First feature of each plane; the other features do not turn.
        second: Second feature of each plane.
        config: The source's configuration, of its text model where that is nested.
    """

    head_dim: int
    first: tuple[int, ...]
    second: tuple[int, ...]
    config: dict[str, Any]

    def turning(self) -> Turning:
        """Return averages of what positions do to a block's scores.

        Raises:
            FamilyError: The configuration's rotary positions are of a kind that is not known.
        """
        if not self.first:
            return still(self.head_dim)
        context = self.config.get("max_position_embeddings")
        context = min(context, MAX_CONTEXT) if isinstance(context, int) and context > 0 else MAX_CONTEXT
        frequencies = rotary_frequencies(self.config, len(self.first))
        return _turning(self.head_dim, self.first, self.second, frequencies, context)


def rotary_planes(model: SourceModel, block: Block) -> RotaryPlanes:
    """Return the rotary planes of a block's heads; none without rotary positions."""
    rotary, head_dim = block.attention.rotary, block.layout.head_dim
    config = attention_config(model.config, block.attention)
    turned = 0 if rotary is None else int(head_dim * rotary_fraction(config, rotary.fraction))
    if rotary is not None and rotary.style == "half":
        first, second = range(turned // 2), range(turned // 2, turned)
    else:
        first, second = range(0, turned, 2), range(1, turned, 2)
    return RotaryPlanes(head_dim, tuple(first), tuple(second), config)


@lru_cache(maxsize=8)
def _turning(
    head_dim: int,
    first: tuple[int, ...],
    second: tuple[int, ...],
    frequencies: tuple[float, ...],
    context: int,
) -> Turning:
    return make_turning(head_dim, list(first), list(second), np.array(frequencies), context)


def rotary_frequencies(config: dict[str, Any], planes: int) -> tuple[float, ...]:
    """Return the rotary frequency of each plane, in radians per position, for the configured ``rope_type``.

    Raises:
        FamilyError: The kind is not one of transformers', or turns another number of planes.
    """
    settings = rope_settings(config)
    if settings["rope_type"] == "default":
        powers: NDArray[np.float64] = np.arange(planes) / planes
        return tuple(settings["rope_theta"] ** -powers)
    return _scaled_frequencies(config, settings["rope_type"], planes)


def _scaled_frequencies(config: dict[str, Any], kind: str, planes: int) -> tuple[float, ...]:
    """Return the frequencies of an extended context, as transformers computes them."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found, _ = ROPE_INIT_FUNCTIONS[kind](stock_config(config), device="cpu")
    if len(found) != planes:
        raise FamilyError(
            f"config.json: {kind!r} rotary positions turn {len(found)} planes, expected {planes}"
        )
    return tuple(found.double().tolist())
