"""The name of an attention block, shared by every package."""

from __future__ import annotations

# Kind of attention, as the family's table names it, and number of the layer.
Place = tuple[str, int]


def place_name(place: Place) -> str:
    """Return what messages call a block."""
    kind, layer = place
    return f"layer {layer}, {kind} attention"


def place_seed(seed: int, place: Place) -> str:
    """Return the seed of one block's draws, as text."""
    kind, layer = place
    return f"{seed}/{kind}/{layer}"
