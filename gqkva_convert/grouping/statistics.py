"""Statistics that searches for groups read: inner products of a block's heads and of their readers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.transforms.closed_form import inner_products, plane_products, square_root

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BlockStatistics:
    """One attention block, by its units: the stored key/value heads of the source.

    Attributes:
        head_dim: Features per head.
        first: First feature of each rotary plane; the rest does not turn.
        second: Second feature of each rotary plane.
        keys: Inner products of all features of all key heads, ``(units * head_dim, units * head_dim)``.
        values: The same of value heads.
        queries: The same of query heads; ``(0, 0)`` where queries are not shared.
        key_readers: For each unit the summed products of the queries that read it,
            ``(units, head_dim, head_dim)``.
        value_readers: For each unit the summed products of the output blocks that read it, likewise.
    """

    head_dim: int
    first: tuple[int, ...]
    second: tuple[int, ...]
    keys: Array
    values: Array
    queries: Array
    key_readers: Array
    value_readers: Array

    @property
    def units(self) -> int:
        return len(self.key_readers)


def head_products(heads: Array, moment: Array | None) -> Array:
    """Return inner products of all features of heads ``(heads, head_dim, inputs)``."""
    return inner_products(heads.reshape(-1, heads.shape[2]), moment)


def plain_similarity(products: Array, head_dim: int) -> Array:
    """Return cosines of heads' outputs, ``(heads, heads)`` (Chen et al., 2024, arXiv 2406.14963)."""
    count = len(products) // head_dim
    blocks = products.reshape(count, head_dim, count, head_dim)
    return _cosine(np.einsum("sftf->st", blocks))


def aligned_planes(statistics: BlockStatistics, products: Array, readers: Array | None = None) -> Array:
    """Return products of keys (or queries), ``(heads, heads)``, each rotary plane in the best common frame.

    Args:
        statistics: Rotary planes of the block.
        products: Inner products of the heads' features, ``(heads * head_dim, heads * head_dim)``.
        readers: Products of what reads each head, ``(heads, head_dim, head_dim)``; None for the identity.
    """
    head_dim = statistics.head_dim
    count = len(products) // head_dim
    total = np.zeros((count, count))
    first, second = list(statistics.first), list(statistics.second)
    if first:
        planes = np.abs(plane_products(products, first, second, head_dim))
        if readers is not None:
            energies = np.diagonal(readers, axis1=1, axis2=2)
            shares = np.sqrt(np.maximum(energies[:, first] + energies[:, second], 0) / 2).T
            planes = planes * shares[:, :, None] * shares[:, None, :]
        total += planes.sum(axis=0)
    resting = sorted(set(range(head_dim)) - {*first, *second})
    if resting:
        blocks = products.reshape(count, head_dim, count, head_dim)[:, resting][:, :, :, resting]
        if readers is not None:
            blocks = _read(blocks, readers[:, resting][:, :, resting])
        total += subspace_overlap(blocks)
    return total


def subspace_overlap(blocks: Array) -> Array:
    """Return Frobenius norms of heads' products, ``(heads, heads)``: the overlap of their subspaces.

    Args:
        blocks: Products ``(heads, features, heads, features)``.

    Returns:
        Scaled so that the diagonal is each head's energy.
    """
    # ||A B'||_F of heads A and B, which the principal angles between their row spaces decide.
    norms = np.sqrt(np.square(blocks).sum(axis=(1, 3)))
    energy = np.sqrt(np.maximum(np.einsum("sfsf->s", blocks), 0))
    return _cosine(norms) * np.outer(energy, energy)


def value_overlap(statistics: BlockStatistics, weighted: bool) -> Array:
    """Return `subspace_overlap` of value heads, as their output blocks read them if ``weighted``."""
    count, head_dim = statistics.units, statistics.head_dim
    blocks = statistics.values.reshape(count, head_dim, count, head_dim)
    return subspace_overlap(_read(blocks, statistics.value_readers) if weighted else blocks)


def _read(blocks: Array, readers: Array) -> Array:
    """Multiply products ``(heads, features, heads, features)`` by the roots of the heads' readers."""
    roots = square_root(readers)
    left = np.matmul(roots.transpose(0, 2, 1), blocks.reshape(*blocks.shape[:2], -1)).reshape(blocks.shape)
    both: Array = np.matmul(left.transpose(2, 0, 1, 3), roots[:, None]).transpose(1, 2, 0, 3)
    return both


def _cosine(similarity: Array) -> Array:
    size = np.sqrt(np.maximum(np.diagonal(similarity), 0))
    scale = np.outer(size, size)
    result: Array = np.where(scale > 0, similarity / np.where(scale > 0, scale, 1), 0)
    return result
