"""Averages of rotary positions over distances, applied to products of features.

Between a query and a key ``distance`` positions apart, a plane of two features turns by ``frequency *
distance``. A score is ``q' R k`` with that turn ``R``; its square needs ``E[R X R']`` over distances. Where
frequencies are high or far apart the average removes what two planes have in common, where planes hardly turn
within the context it keeps it, and such planes may be mixed like features without positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Distances an average runs over; frequencies are smooth enough for a spread of them.
_NODES = 512


@dataclass(frozen=True)
class Turning:
    """Averages over distances for one attention block.

    Attributes:
        cosines: ``E[c_i c_j]`` of all features, ``(head_dim, head_dim)``; c is 1 without a turn.
        mixed: ``E[c_i s_j]``, of that shape; s is the sine with the sign that a turn gives the partner, or 0.
        sines: ``E[s_i s_j]``, of that shape.
        partner: The other feature of each feature's plane, or itself, ``(head_dim,)``.
    """

    cosines: Array
    mixed: Array
    sines: Array
    partner: NDArray[np.intp]

    def average(self, products: Any) -> Array:
        """Return ``E[R X R']`` of ``X``, ``(..., head_dim, head_dim)``."""
        return self._turned(products, 1)

    def average_back(self, products: Any) -> Array:
        """Return ``E[R' X R]`` of ``X``, ``(..., head_dim, head_dim)``."""
        return self._turned(products, -1)

    def _turned(self, products: Any, sign: int) -> Array:
        mixed = self.mixed if sign > 0 else -self.mixed
        part = np.take(products, self.partner, axis=-1)
        result: Array = np.take(part, self.partner, axis=-2)
        result *= self.sines
        part *= mixed
        result += part
        part = np.take(products, self.partner, axis=-2)
        part *= mixed.T
        result += part
        result += self.cosines * products
        return result


def make_turning(
    head_dim: int, first: list[int], second: list[int], frequencies: Array, context: int
) -> Turning:
    """Average over the distances of a context, near ones weighted more.

    Distance t has the weight ``sqrt((context - t) / (1 + t))``: there are ``context - t`` such pairs, and
    attention falls off with distance. docs/methods.md compares other weights.

    Args:
        head_dim: Features per head.
        first: First feature of each rotary plane; the rest does not turn.
        second: Second feature of each plane.
        frequencies: Radians per position, ``(planes,)``.
        context: Positions the model reads.
    """
    nodes = np.unique(np.round(np.linspace(0, np.sqrt(max(context - 1, 1)), _NODES) ** 2))
    ends = np.concatenate([nodes, [context]])
    weights = np.sqrt(np.maximum(context - nodes, 0.5) / (1 + nodes)) * np.diff(ends)
    weights /= weights.sum()
    angles = nodes[:, None] * frequencies
    cosine, sine = np.ones((len(nodes), head_dim)), np.zeros((len(nodes), head_dim))
    partner = np.arange(head_dim)
    cosine[:, first] = cosine[:, second] = np.cos(angles)
    sine[:, first], sine[:, second] = -np.sin(angles), np.sin(angles)
    partner[first], partner[second] = second, first
    return Turning(
        (cosine.T * weights) @ cosine, (cosine.T * weights) @ sine, (sine.T * weights) @ sine, partner
    )


def still(head_dim: int) -> Turning:
    """Return the averages without rotary positions."""
    zeros = np.zeros((head_dim, head_dim))
    return Turning(np.ones((head_dim, head_dim)), zeros, zeros, np.arange(head_dim))
