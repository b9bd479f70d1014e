"""Which pairs of a family and a setting the default run tests; all other pairs are marked slow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from gqkva_convert.architectures import FAMILIES, Family
from gqkva_convert.modeling.bundle import BLOCK_CLASSES


def code_paths(family: Family) -> list[str]:
    """Name each kind of code that a family's attention runs through and many other families' does not."""
    names = {
        "own block class": family.model_type in BLOCK_CLASSES,
        "fused projection": any(len(p.roles) > 1 for a in family.attention for p in a.projections),
        "encoder-decoder": any(attention.kind == "cross" for attention in family.attention),
        "towers": any(attention.kind == "vision" for attention in family.attention),
        "norms": any(attention.norms for attention in family.attention),
    }
    found = [name for name, holds in names.items() if holds]
    return found or ["separate, causal" if family.attention[0].is_causal else "separate, both ways"]


def pairs(
    families: Iterable[str], always: Sequence[Any] = (), dealt: Sequence[Any] = (), slow: Sequence[Any] = ()
) -> list[Any]:
    """Return every pair of a family and a setting as a parameter; the default run takes a choice of them.

    Chosen are: every family with every setting of ``always``; and of ``dealt``, for each kind of
    `code_paths`, every setting with one family of that kind at least, and every family with one
    setting at least. A fault that depends on the code path and the setting shows in the default run;
    one that depends on a single family and a single setting, in the slow run.

    Args:
        families: Model types.
        always: Settings that every family has in the default run.
        dealt: Settings that are dealt to the families of each kind in turn.
        slow: Settings of the slow run alone.
    """
    names = list(families)
    kinds: dict[str, list[str]] = {}
    for name in names:
        for path in code_paths(FAMILIES[name]):
            kinds.setdefault(path, []).append(name)
    chosen = {
        (members[turn % len(members)], turn % len(dealt))
        for members in kinds.values()
        for turn in range(max(len(members), len(dealt)) if dealt else 0)
    }
    found = []
    for name in names:
        found += [pytest.param(name, setting) for setting in always]
        found += [
            pytest.param(name, setting, marks=() if (name, number) in chosen else pytest.mark.slow)
            for number, setting in enumerate(dealt)
        ]
        found += [pytest.param(name, setting, marks=pytest.mark.slow) for setting in slow]
    return found
