"""The best shared head of several that are read linearly, in closed form.

A value head is read through the output projection, a key head without rotary positions through the queries.
For weights ``W_s`` of heads ``s`` and inputs ``x`` of second moment ``C = E[x x']`` the shared head minimises

    sum over readers p of E || x' W_s(p) R_p  -  x' W Z_s(p) R_p ||^2

with ``R_p`` the reader of head s(p). The best ``W`` of rank head_dim are the leading eigenvectors of
``sum_s V_s (sum_p R_p R_p') V_s'`` with ``V_s = C^1/2 W_s`` (Eckart and Young, 1936). It is a combination of
the heads themselves, so that their inner products are all that is needed and no moment is ever inverted.
A plane of two features under rotary positions is one complex number, and passes only such a number on to its
queries. Inner products are as precise as the weights; everything computed from them is float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Energies below this share of the largest count as this share.
RELATIVE_TOLERANCE = 1e-12
# Traces of inner products that float32 is far from underflow and overflow at.
_LEAST, _MOST = 1e-20, 1e30


def noise_share(dtype: Any) -> float:
    """Return the share of the largest eigenvalue below which one of inner products of a dtype is rounding."""
    return 1e-7 if dtype == np.float32 else 1e-12


def inner_products(rows: NDArray[Any], moment: Array | None) -> NDArray[Any]:
    """Return ``E (w_i' x)(w_j' x)`` of all rows of weights.

    Args:
        rows: ``(rows, inputs)``, float32 or float64.
        moment: ``C``: None for the identity, ``(inputs,)`` for a diagonal, or ``(inputs, inputs)``.

    Returns:
        ``(rows, rows)``, symmetric to the last bit, in the dtype of the rows. float64 for a full moment,
        whose few strong directions would hide the others in float32, and for squares beyond its range.
    """
    products: NDArray[Any]
    if moment is not None and moment.ndim == 2:
        wide = rows.astype(np.float64, copy=False)
        products = (wide @ moment) @ wide.T
        products += products.T.copy()
        products /= 2
        return products
    if moment is not None:
        rows = rows * np.sqrt(moment).astype(rows.dtype)
    with np.errstate(over="ignore", under="ignore"):
        products = rows @ rows.T  # numpy computes half of it, and copies the other half
    if rows.dtype == np.float32 and not _LEAST < np.trace(products) < _MOST:
        wide = rows.astype(np.float64)
        products = wide @ wide.T
    return products


def shared_subspace(products: NDArray[Any], readers: Array) -> tuple[Array, Array]:
    """Return the best shared head of several value heads, or key heads without rotary positions.

    Args:
        products: Inner products of all features of all heads, ``(heads * head_dim, heads * head_dim)``, in
            the dtype that they were computed in.
        readers: For each head ``sum_p R_p R_p'`` over its readers, ``(heads, head_dim, head_dim)``.

    Returns:
        ``(combination, absorbed)``, both ``(heads, head_dim, head_dim)``: the shared head is
        ``sum_s combination[s] @ heads[s]``, and a reader of head s becomes ``absorbed[s] @ reader``.
    """
    count, head_dim, _ = readers.shape
    noise, products = noise_share(products.dtype), products.astype(np.float64, copy=False)
    roots = square_root(readers)
    left = _read(products, roots)
    gram = _read(left.T, roots)
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    values, vectors = values[::-1][:head_dim], vectors[:, ::-1][:, :head_dim]
    kept = values > noise * max(float(values[0]), np.finfo(np.float64).tiny)
    inverse = np.where(kept, 1 / np.sqrt(np.where(kept, values, 1)), 0)
    basis = vectors * inverse  # F basis is orthonormal, for F = [V_s L_s]_s with L_s L_s' = readers[s]
    combination = np.matmul(roots, basis.reshape(count, head_dim, head_dim)).transpose(0, 2, 1)
    absorbed = (basis.T @ left).reshape(head_dim, count, head_dim).transpose(1, 0, 2)
    # As large as its members, rather than of unit variance.
    scale = np.sqrt(max(float(np.trace(products)) / len(products), np.finfo(np.float64).tiny))
    return combination * scale, absorbed / scale


def subspace_residual(products: Array, readers: Array) -> float:
    """Return the loss of `shared_subspace`: the sum of the eigenvalues beyond the first head_dim."""
    head_dim = readers.shape[1]
    roots = square_root(readers)
    gram = _read(_read(products, roots).T, roots)
    values = np.linalg.eigvalsh((gram + gram.T) / 2)
    return float(np.maximum(values[:-head_dim], 0).sum())


def _read(matrix: Array, roots: Array) -> Array:
    """Return ``diag(L_s)' matrix`` for the roots ``L_s`` of every head, ``(heads, head_dim, head_dim)``."""
    count, head_dim, _ = roots.shape
    blocks = matrix.reshape(count, head_dim, -1)
    result: Array = np.matmul(roots.transpose(0, 2, 1), blocks).reshape(matrix.shape)
    return result


def plane_products(products: Array, first: list[int], second: list[int], head_dim: int) -> ComplexArray:
    """Return ``E conj(k_s) k_t`` of rotary planes as complex numbers, ``(planes, heads, heads)``.

    Args:
        products: Inner products as for `shared_subspace`.
        first: First feature of each plane.
        second: Second feature of each plane.
        head_dim: Features per head.
    """
    count = len(products) // head_dim
    blocks = products.reshape(count, head_dim, count, head_dim)
    one, two = np.array(first), np.array(second)
    same = blocks[:, one, :, one] + blocks[:, two, :, two]
    turned = blocks[:, one, :, two] - blocks[:, two, :, one]
    result: ComplexArray = same + 1j * turned
    return result


def shared_planes(products: ComplexArray, energies: Array) -> tuple[ComplexArray, ComplexArray]:
    """Return the best shared key head of several with rotary positions: rank 1 in each plane.

    Args:
        products: ``(planes, heads, heads)``, from `plane_products`.
        energies: ``sum_p E |q_p|^2`` over each head's readers, ``(heads, planes)``.

    Returns:
        ``(combination, absorbed)``, both ``(heads, planes)``: the shared key is
        ``sum_s combination[s] * heads[s]``, and a query that read head s is multiplied by ``absorbed[s]``.
    """
    shares = _shares(energies)
    gram = _weighted(products, shares)
    _, vectors = np.linalg.eigh(gram)
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


def planes_residual(products: ComplexArray, energies: Array) -> float:
    """Return the loss of `shared_planes`, summed over planes; arguments as there."""
    values = np.linalg.eigvalsh(_weighted(products, _shares(energies)))
    return float(np.maximum(values[:, :-1], 0).sum())


def _shares(energies: Array) -> Array:
    """Return roots of the energies by plane, ``(planes, heads)``; never zero."""
    floor = RELATIVE_TOLERANCE * np.maximum(energies.max(axis=0), np.finfo(np.float64).tiny)
    shares: Array = np.sqrt(np.maximum(energies, floor)).T
    return shares


def _weighted(products: ComplexArray, shares: Array) -> ComplexArray:
    gram = products * shares[:, :, None] * shares[:, None, :]
    result: ComplexArray = (gram + gram.conj().transpose(0, 2, 1)) / 2
    return result


def square_root(matrices: Array) -> Array:
    """Return ``L`` with ``L L' = M`` for positive semidefinite ``(..., size, size)``, singular or not."""
    values, vectors = np.linalg.eigh((matrices + np.swapaxes(matrices, -1, -2)) / 2)
    roots: Array = vectors * np.sqrt(np.maximum(values, 0))[..., None, :]
    return roots
