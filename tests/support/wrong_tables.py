"""Tables that are wrong on purpose: each says one thing that the family does not do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gqkva_convert.architectures import NEVER, Attention, Family, Key, Rotary
from gqkva_convert.architectures.schema import ALWAYS, separate

Change = Callable[[Attention], Attention]


def _roles(one: str, other: str) -> Change:
    """Exchange the names of two projections."""

    def change(attention: Attention) -> Attention:
        names = {role: projection.name for projection in attention.projections for role in projection.roles}
        exchanged = {one: names[other], other: names[one]}
        return replace(
            attention,
            projections=tuple(
                replace(projection, name=exchanged.get(projection.roles[0], projection.name))
                for projection in attention.projections
            ),
        )

    return change


def _axis(role: str) -> Change:
    """Say that a projection's heads run along the other axis."""

    def change(attention: Attention) -> Attention:
        return replace(
            attention,
            projections=tuple(
                replace(projection, head_axis=1 - projection.head_axis)
                if role in projection.roles
                else projection
                for projection in attention.projections
            ),
        )

    return change


def _rotary(style: str, fraction: float) -> Change:
    def change(attention: Attention) -> Attention:
        assert attention.rotary is not None
        other = {"half": "interleaved", "interleaved": "half"}
        name: Any = attention.rotary.style if style == "same" else other[attention.rotary.style]
        return replace(attention, rotary=Rotary(name, attention.rotary.fraction * fraction))

    return change


def _heads(factor: int) -> Change:
    """Say that there are more or fewer heads, narrower or wider ones."""

    def change(attention: Attention) -> Attention:
        # The small model has four key/value heads of 16 features; four or eight attention heads.
        return replace(
            attention,
            num_attention_heads=Key("absent", 4 * factor if factor > 1 else 2),
            num_key_value_heads=Key("absent", 4 * factor if factor > 1 else 2),
            head_dim=Key("absent", 16 // factor if factor > 1 else 32),
        )

    return change


def _packing(packing: str) -> Change:
    def change(attention: Attention) -> Attention:
        name: Any = packing
        return replace(
            attention,
            projections=tuple(
                replace(projection, packing=name) if len(projection.roles) > 1 else projection
                for projection in attention.projections
            ),
        )

    return change


def _order(*roles: Any) -> Change:
    """Say that a fused projection holds its roles in another order."""

    def change(attention: Attention) -> Attention:
        return replace(
            attention,
            projections=tuple(
                replace(projection, roles=roles) if len(projection.roles) > 1 else projection
                for projection in attention.projections
            ),
        )

    return change


SEPARATE: dict[str, Change] = {
    "k for v": _roles("key", "value"),
    "q for k": _roles("query", "key"),
    "q for v": _roles("query", "value"),
    "v for o": _roles("value", "output"),
    "q for o": _roles("query", "output"),
    "q transposed": _axis("query"),
    "k transposed": _axis("key"),
    "v transposed": _axis("value"),
    "o transposed": _axis("output"),
    "half as wide heads": _heads(2),
    "twice as wide heads": _heads(1),
}
TURNING: dict[str, Change] = {
    "other rotary style": _rotary("other", 1.0),
    "half the planes": _rotary("same", 0.5),
    "a plane too few": _rotary("same", 0.875),
    "other style, half the planes": _rotary("other", 0.5),
    "no rotary positions": lambda attention: replace(attention, rotary=None),
}
# A quarter or a half of a head turns in these: there may be too many planes, too.
PARTLY: dict[str, Change] = {
    "the whole head turns": _rotary("same", 2.0),
    "other style": _rotary("other", 1.0),
    "half the planes": _rotary("same", 0.5),
    "no rotary positions": lambda attention: replace(attention, rotary=None),
}
FUSED: dict[str, Change] = {
    "per head": _packing("per_head"),
    "k before q": _order("key", "query", "value"),
    "v before k": _order("query", "value", "key"),
    "v first": _order("value", "query", "key"),
}
NORMED: dict[str, Change] = {
    "norm forgotten": lambda attention: replace(attention, norms=()),
    "norm of one role": lambda attention: replace(attention, norms=attention.norms[:1]),
    "norms exchanged": lambda attention: replace(
        attention,
        norms=tuple(
            replace(norm, role=other.role)
            for norm, other in zip(attention.norms, attention.norms[::-1], strict=True)
        ),
    ),
    "other span": lambda attention: replace(
        attention,
        norms=tuple(
            replace(norm, span="shared" if norm.span == "all_heads" else "all_heads")
            for norm in attention.norms
        ),
    ),
}
BIASED: dict[str, Change] = {
    "bias forgotten": lambda attention: replace(
        attention,
        projections=separate("layers.{layer}.self_attn.", "q_proj", "k_proj", "v_proj", "o_proj", NEVER),
    ),
    "bias of the output too": lambda attention: replace(
        attention,
        projections=separate("layers.{layer}.self_attn.", "q_proj", "k_proj", "v_proj", "o_proj", ALWAYS),
    ),
}


def changed(family: Family, change: Change) -> Family:
    """Return a table whose attention says something else."""
    return replace(family, attention=tuple(change(attention) for attention in family.attention))
