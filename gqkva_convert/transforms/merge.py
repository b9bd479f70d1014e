"""Merge rules: how several heads become one.

A rule sees the heads of one group of one projection and says how much of each goes into the merged
head. The same shares are used for the projection's bias and for norms that follow it, so that a
merged head is one affine map. `random` draws a new head instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gqkva_convert.transforms.precision import Array


@dataclass(frozen=True)
class MergeRule:
    """One way to mix heads.

    Attributes:
        name: What the command line calls it.
        shares: From a group's heads, each ``(head_dim, in_features)``, to the share of each, summing to 1.
        reads_weights: Whether the shares depend on what the heads hold, or only on how many there are.
        starts_afresh: Whether the merged head is drawn at random instead (`fresh_head`).
        is_joint: Whether keys merge together with queries and values with the output projection
            (`blocks`); the shares then serve norms on queries and keys alone.
        group_method: How a joint merge computes one group under this rule; None where it cannot.
        rescales: Whether the group's head is made as large as its members.
        ignores_data: Whether weights alone count, even where moments were measured.
        is_tried: Whether ``auto`` compares it with others on held-out data.
    """

    name: str
    shares: Callable[[Sequence[Array]], Array]
    reads_weights: bool = False
    starts_afresh: bool = False
    is_joint: bool = False
    group_method: Literal["closed-form", "aligned", "mean"] | None = None
    rescales: bool = False
    ignores_data: bool = False
    is_tried: bool = False


def _mean(heads: Sequence[Array]) -> Array:
    """Weight every head equally (Ainslie et al., 2023, arXiv 2305.13245, section 2.1)."""
    return np.full(len(heads), 1 / len(heads))


def _first(heads: Sequence[Array]) -> Array:
    """Take the group's first head alone (Ainslie et al., 2023, arXiv 2305.13245, section 3.3)."""
    shares: Array = np.eye(1, len(heads))[0]
    return shares


def _norm_weighted(heads: Sequence[Array]) -> Array:
    """Weight heads in proportion to the Frobenius norm of their weights; equally if all are zero."""
    norms = np.array([np.sqrt(np.square(head, dtype=np.float64).sum()) for head in heads])
    total = norms.sum()
    return norms / total if 0 < total < np.inf else _mean(heads)


def _joint(name: str, method: Literal["closed-form", "aligned", "mean"], **facts: Any) -> MergeRule:
    return MergeRule(name, _mean, is_joint=True, group_method=method, **facts)


RULES = {
    rule.name: rule
    for rule in (
        MergeRule("mean", _mean, group_method="mean", is_tried=True),
        MergeRule("first", _first),
        MergeRule("norm-weighted", _norm_weighted, reads_weights=True),
        _joint("closed-form", "closed-form", is_tried=True),
        _joint("closed-form-weights", "closed-form", ignores_data=True, is_tried=True),
        _joint("aligned", "aligned"),
        _joint("aligned-rescaled", "aligned", rescales=True, is_tried=True),
        MergeRule("auto", _mean, is_joint=True),
        # Norms that follow a fresh projection keep their mean gain; see `fresh_head` for the weights.
        MergeRule("random", _mean, starts_afresh=True),
    )
}
# Rules that single groups of a joint merge can have; of equal errors ``auto`` takes the first.
GROUP_RULES = tuple(
    name
    for method in ("closed-form", "aligned", "mean")
    for name, rule in RULES.items()
    if rule.group_method == method
)


def merge(heads: Sequence[Array], shares: Array) -> Array:
    """Mix a group's heads.

    Args:
        heads: Arrays of one shape, in float32 or float64.
        shares: ``(len(heads),)``, summing to 1.

    Returns:
        One array of that shape and dtype. Equal heads are unchanged, to the last bit. Equal shares are
        summed and divided once: the sum of a few narrower numbers is exact, so that only the final
        rounding to the stored dtype loses anything.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if np.any(shares != shares[0]) or len(heads) == 1:
            return _from_first(heads, shares)
        total: Array = heads[0] + heads[1]
        for head in heads[2:]:
            total += head
        total /= len(heads)
        if total.dtype == np.float64:  # stored float64 has no wider type to be summed in
            agree = np.logical_and.reduce([heads[0] == head for head in heads[1:]])
            np.copyto(total, heads[0], where=agree)
        elif not np.isfinite(total).all():  # bfloat16 reaches as far as float32 does
            return _from_first(heads, shares)
    return total


def _from_first(heads: Sequence[Array], shares: Array) -> Array:
    """Move the first head by its share-weighted distance to each of the others."""
    total = heads[0]
    for head, share in zip(heads[1:], shares[1:], strict=True):
        if share:
            distance = heads[0] - head
            distance *= head.dtype.type(share)
            # Subtracted, because adding 0 would turn a negative zero positive.
            total = np.subtract(total, distance, out=distance)
    return total


def fresh_head(heads: Sequence[Array], seed: str) -> Array:
    """Draw a head at the scale of those it replaces (arXiv 2305.13245, section 3.3, "random").

    Args:
        heads: The group's heads, each ``(head_dim, in_features)``, for shape, dtype and root mean square.
        seed: Any text; the same text gives the same head on every machine.

    Returns:
        Normal numbers of mean 0.
    """
    scale = float(np.sqrt(np.mean([np.square(head, dtype=np.float64).mean() for head in heads])))
    digest = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "big")
    generator = np.random.Generator(np.random.PCG64(digest))
    return (generator.standard_normal(heads[0].shape) * scale).astype(heads[0].dtype)
