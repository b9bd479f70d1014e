"""Numbers of key/value heads for each layer under a budget, and of readers for each head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def allocate(losses: Sequence[Mapping[int, float]], budget: int) -> list[int] | None:
    """Return the numbers of heads with the least total loss, by dynamic programming over the budget.

    Args:
        losses: For each layer, the loss of each number of heads that it may keep.
        budget: Most heads of all layers together.

    Returns:
        A number for each layer, or None if even the smallest numbers exceed the budget.
    """
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for choices in losses:
        following: dict[int, tuple[float, tuple[int, ...]]] = {}
        for used, (loss, chosen) in best.items():
            for count, more in choices.items():
                total = used + count
                if total <= budget and (total not in following or loss + more < following[total][0]):
                    following[total] = loss + more, (*chosen, count)
        best = following
    if not best:
        return None
    # Heads are not spent on rounding errors.
    rounding = 1e-9 * sum(max(choices.values()) for choices in losses)
    least = min(loss for loss, _ in best.values())
    enough = (chosen for loss, chosen in best.values() if loss <= least + rounding)
    return list(min(enough, key=sum))


def sizes_by_norm(norms: NDArray[np.float64], heads: int) -> list[int]:
    """Size groups in proportion to their keys' norms (Khan et al., 2024, arXiv 2408.08454, section 3.2).

    Args:
        norms: Norm of each shared key head, ``(groups,)``.
        heads: Heads to divide, at least one each.

    Returns:
        Sizes that sum to ``heads``, by largest remainders.
    """
    total = float(norms.sum())
    shares = norms / total * heads if total > 0 else np.full(len(norms), heads / len(norms))
    sizes = np.maximum(np.floor(shares).astype(int), 1)
    while sizes.sum() > heads:
        sizes[int(np.argmax(np.where(sizes > 1, sizes - shares, -np.inf)))] -= 1
    while sizes.sum() < heads:
        sizes[int(np.argmax(shares - sizes))] += 1
    return [int(size) for size in sizes]
