"""Merges with a closed form: one shared head and what each head that reads it must absorb.

A value head is read through the output projection, a key head through the queries; both readers are linear.
For weights ``W_s`` of heads ``s`` and inputs ``x`` of second moment ``C = E[x x']`` the shared head minimises

    sum over readers p of E || x' W_s(p) R_p  -  x' W Z_s(p) R_p ||^2

with ``R_p`` the reader of head s(p). The best ``W`` of rank head_dim are the leading eigenvectors of
``sum_s V_s (sum_p R_p R_p') V_s'`` with ``V_s = C^1/2 W_s`` (Eckart and Young, 1936). It is a combination of
the heads themselves, so that no moment is ever inverted. Keys under rotary positions allow one complex number
for each rotary plane instead of a matrix. Everything here is float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Eigenvalues below this share of the largest are noise: such directions carry nothing.
RELATIVE_TOLERANCE = 1e-12


def inner_products(heads: Array, moment: Array | None) -> Array:
    """``W_s C W_t'`` of all rows of all heads.

    Args:
        heads: ``(rows, inputs)``.
        moment: ``C``: None for the identity, ``(inputs,)`` for a diagonal, or ``(inputs, inputs)``.

    Returns:
        ``(rows, rows)``.
    """
    products: Array = _times(heads, moment) @ heads.T
    return products


def _times(heads: Any, moment: Array | None) -> Any:
    """``heads @ C`` for a moment in any of its forms."""
    if moment is None:
        return heads
    return heads * moment if moment.ndim == 1 else heads @ moment


def shared_subspace(heads: Array, readers: Array, moment: Array | None) -> tuple[Array, Array]:
    """The best head to stand for several that are read linearly (values; keys without rotary positions).

    Args:
        heads: Weights ``(heads, head_dim, inputs)``.
        readers: For each head ``sum_p R_p R_p'`` over its readers, ``(heads, head_dim, head_dim)``.
        moment: Second moment of the inputs, as `inner_products` takes it.

    Returns:
        ``(combination, absorbed)``, both ``(heads, head_dim, head_dim)``: the shared head is
        ``sum_s combination[s] @ heads[s]``, and a reader of head s becomes ``absorbed[s] @ reader``.
    """
    count, head_dim, inputs = heads.shape
    rows = heads.reshape(count * head_dim, inputs)
    products = inner_products(rows, moment)
    roots = np.stack([_square_root(reader) for reader in readers])
    # G = F'F for F = [V_s L_s]_s, with L_s L_s' = readers[s]
    left = np.zeros_like(products)
    for place, root in enumerate(roots):
        span = slice(place * head_dim, (place + 1) * head_dim)
        left[span] = root.T @ products[span]
    gram = np.zeros_like(products)
    for place, root in enumerate(roots):
        span = slice(place * head_dim, (place + 1) * head_dim)
        gram[:, span] = left[:, span] @ root
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    values, vectors = values[::-1][:head_dim], vectors[:, ::-1][:, :head_dim]
    kept = values > RELATIVE_TOLERANCE * max(float(values[0]), np.finfo(np.float64).tiny)
    inverse = np.where(kept, 1 / np.sqrt(np.where(kept, values, 1)), 0)
    basis = vectors * inverse  # U = F basis is orthonormal
    combination = np.stack(
        [basis[place * head_dim : (place + 1) * head_dim].T @ root.T for place, root in enumerate(roots)]
    )
    absorbed = (basis.T @ left).reshape(head_dim, count, head_dim).transpose(1, 0, 2)
    # As large as the heads it stands for, rather than of unit variance.
    scale = np.sqrt(max(float(np.trace(products)) / rows.shape[0], np.finfo(np.float64).tiny))
    return combination * scale, absorbed / scale


def shared_planes(heads: Array, energies: Array, moment: Array | None) -> tuple[ComplexArray, ComplexArray]:
    """The best rotary planes to stand for those of several key heads.

    A plane's two features are one complex number, and the rotation multiplies it; only a complex factor
    passes from a key to its queries. Rank 1 for each plane, weighted by the energy of each head's queries.

    Args:
        heads: Weights as complex numbers, ``(heads, planes, inputs)``: first feature plus i times the second.
        energies: ``sum_p E |q_p|^2`` over each head's readers, ``(heads, planes)``.
        moment: Second moment of the inputs, as `inner_products` takes it.

    Returns:
        ``(combination, absorbed)``, both ``(heads, planes)``: the shared key is
        ``sum_s combination[s] * heads[s]``, and a query that read head s is multiplied by ``absorbed[s]``.
    """
    floor = RELATIVE_TOLERANCE * np.maximum(energies.max(axis=0), np.finfo(np.float64).tiny)
    weights = np.sqrt(np.maximum(energies, floor))
    planes = heads.transpose(1, 0, 2)  # (planes, heads, inputs)
    weighted = _times(planes, moment)
    products: Any = weighted.conj() @ planes.transpose(0, 2, 1)  # <k_s, k_t>
    shares = weights.T
    gram = products * shares[:, :, None] * shares[:, None, :]
    _, vectors = np.linalg.eigh((gram + gram.conj().transpose(0, 2, 1)) / 2)
    leading = vectors[:, :, -1]  # (planes, heads)
    # Phase and size as of the heads on average, so that equal heads come out as they went in.
    total = (shares * leading.conj()).sum(axis=1)
    leading = leading * np.exp(1j * np.angle(total))[:, None]
    combination = shares * leading
    absorbed = leading.conj() / shares
    size = np.einsum("ps,pst,pt->p", combination.conj(), products, combination).real
    wanted = np.einsum("pss,ps->p", products.real, shares**2) / (shares**2).sum(axis=1)
    scale = np.sqrt(np.maximum(wanted, 0) / np.maximum(size, np.finfo(np.float64).tiny))
    scale = np.where(scale > 0, scale, 1)[:, None]
    # k_s is about absorbed[s] * k; Re(conj(q) absorbed k) = Re(conj(conj(absorbed) q) k)
    return (combination * scale).T, (absorbed / scale).conj().T


def _square_root(matrix: Array) -> Array:
    """``L`` with ``L L' = matrix`` for a positive semidefinite matrix, singular or not."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root: Array = vectors * np.sqrt(np.maximum(values, 0))
    return root
