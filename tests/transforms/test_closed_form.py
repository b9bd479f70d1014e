"""The closed forms are optimal for their objective and know the invariances of attention heads."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gqkva_convert.transforms.closed_form import (
    inner_products,
    plane_products,
    planes_residual,
    shared_planes,
    shared_subspace,
    subspace_residual,
)

Array = NDArray[np.float64]
HEADS, HEAD_DIM, INPUTS, OUTPUTS = 3, 4, 10, 9


def moments(kind: str, random: np.random.Generator) -> Array | None:
    if kind == "identity":
        return None
    if kind == "diagonal":
        return random.uniform(0.1, 3, INPUTS)
    samples = random.standard_normal((6 if kind == "singular" else 40, INPUTS))
    return samples.T @ samples / len(samples)


def dense(moment: Array | None) -> Array:
    if moment is None:
        return np.eye(INPUTS)
    return np.diag(moment) if moment.ndim == 1 else moment


def merged(heads: Array, read: Array, moment: Array | None) -> tuple[Array, Array]:
    """`shared_subspace` from weights."""
    return shared_subspace(inner_products(heads.reshape(-1, INPUTS), moment), read @ read.transpose(0, 2, 1))


def merged_planes(
    heads: NDArray[np.complex128], energies: Array, moment: Array | None
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """`shared_planes` from weights."""
    return shared_planes(complex_products(heads, moment), energies)


def complex_products(heads: NDArray[np.complex128], moment: Array | None) -> NDArray[np.complex128]:
    number = heads.shape[1]
    rows = np.concatenate([heads.real, heads.imag], axis=1).reshape(-1, INPUTS)
    return plane_products(
        inner_products(rows, moment), list(range(number)), list(range(number, 2 * number)), 2 * number
    )


def subspace_loss(heads: Array, read: Array, moment: Array | None, shared: Array, absorbed: Array) -> float:
    """``sum E || R' W x - (Z R)' W_shared x ||^2``."""
    total = 0.0
    for head, reader, factor in zip(heads, read, absorbed, strict=True):
        difference = reader.T @ head - (factor @ reader).T @ shared
        total += float(np.trace(difference @ dense(moment) @ difference.T))
    return total


@pytest.mark.parametrize("kind", ["identity", "diagonal", "full", "singular"])
@pytest.mark.parametrize("seed", range(3))
def test_no_change_makes_a_shared_subspace_better(kind: str, seed: int) -> None:
    """Against the best readers for any other shared head, near and far, found by least squares."""
    random = np.random.default_rng(seed)
    heads = random.standard_normal((HEADS, HEAD_DIM, INPUTS))
    read = random.standard_normal((HEADS, HEAD_DIM, OUTPUTS))
    moment = moments(kind, random)
    combination, absorbed = merged(heads, read, moment)
    shared = np.einsum("sij,sjk->ik", combination, heads)
    loss = subspace_loss(heads, read, moment, shared, absorbed)
    root = np.linalg.svd(dense(moment))
    half = root[0] * np.sqrt(root[1]) @ root[0].T
    for size in (1e-3, 1e-1, 1, 10):
        other = shared + size * random.standard_normal(shared.shape)
        basis = np.linalg.pinv(half @ other.T)
        best = np.stack([(basis @ half @ head.T) for head in heads])
        assert subspace_loss(heads, read, moment, other, best) >= loss * (1 - 1e-9)
    for place in range(HEADS):
        moved = absorbed.copy()
        moved[place] += 1e-3 * random.standard_normal(moved[place].shape)
        assert subspace_loss(heads, read, moment, shared, moved) >= loss * (1 - 1e-9)


def test_the_loss_is_what_eckart_and_young_leave() -> None:
    """The sum of the eigenvalues that rank head_dim cannot hold."""
    random = np.random.default_rng(5)
    heads = random.standard_normal((HEADS, HEAD_DIM, INPUTS))
    read = random.standard_normal((HEADS, HEAD_DIM, OUTPUTS))
    combination, absorbed = merged(heads, read, None)
    shared = np.einsum("sij,sjk->ik", combination, heads)
    stacked = np.concatenate([head.T @ reader for head, reader in zip(heads, read, strict=True)], axis=1)
    expected = float((np.linalg.svd(stacked)[1][HEAD_DIM:] ** 2).sum())
    assert subspace_loss(heads, read, None, shared, absorbed) == pytest.approx(expected)
    residual = subspace_residual(
        inner_products(heads.reshape(-1, INPUTS), None), read @ read.transpose(0, 2, 1)
    )
    assert residual == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["identity", "full"])
def test_heads_that_differ_by_an_invertible_matrix_merge_without_loss(kind: str) -> None:
    """W_v A and A^-1 W_o are the same head; plain averaging destroys both."""
    random = np.random.default_rng(1)
    head, reader = random.standard_normal((HEAD_DIM, INPUTS)), random.standard_normal((HEAD_DIM, OUTPUTS))
    mixes = [np.eye(HEAD_DIM), *random.standard_normal((2, HEAD_DIM, HEAD_DIM))]
    heads = np.stack([mix @ head for mix in mixes])
    read = np.stack([np.linalg.inv(mix).T @ reader for mix in mixes])
    moment = moments(kind, random)
    combination, absorbed = merged(heads, read, moment)
    shared = np.einsum("sij,sjk->ik", combination, heads)
    scale = subspace_loss(heads, read, moment, np.zeros_like(shared), absorbed)
    assert subspace_loss(heads, read, moment, shared, absorbed) < 1e-18 * scale


def test_deficient_heads_give_finite_numbers() -> None:
    """A dead head, or one with fewer directions than features, happens in trained models."""
    heads = np.zeros((HEADS, HEAD_DIM, INPUTS))
    heads[1, 0, 0] = 1
    read = np.zeros((HEADS, HEAD_DIM, OUTPUTS))
    read[1, 0, 0] = 2
    for given in (heads, np.zeros_like(heads)):
        combination, absorbed = merged(given, read, None)
        assert np.isfinite(combination).all()
        assert np.isfinite(absorbed).all()
        shared = np.einsum("sij,sjk->ik", combination, given)
        assert subspace_loss(given, read, None, shared, absorbed) == pytest.approx(0, abs=1e-12)
        complex_heads = given[:, :2] + 1j * given[:, 2:]
        for found in merged_planes(complex_heads, np.zeros((HEADS, 2)), None):
            assert np.isfinite(found).all()


def planes(random: np.random.Generator) -> NDArray[np.complex128]:
    real, imaginary = random.standard_normal((2, HEADS, 2, INPUTS))
    return real + 1j * imaginary


def plane_loss(
    heads: NDArray[np.complex128],
    energies: Array,
    moment: Array | None,
    shared: NDArray[np.complex128],
    absorbed: NDArray[np.complex128],
) -> float:
    """``sum_s energy_s E |k_s - conj(absorbed_s) k|^2``."""
    difference = heads - absorbed.conj()[:, :, None] * shared
    sizes = np.einsum("spi,ij,spj->sp", difference.conj(), dense(moment), difference).real
    return float((energies * sizes).sum())


@pytest.mark.parametrize("kind", ["identity", "diagonal", "full", "singular"])
@pytest.mark.parametrize("seed", range(3))
def test_no_change_makes_shared_planes_better(kind: str, seed: int) -> None:
    """Against other shared keys, near and far, each with its best factors."""
    random = np.random.default_rng(seed)
    heads, energies, moment = planes(random), random.uniform(0.1, 3, (HEADS, 2)), moments(kind, random)
    combination, absorbed = merged_planes(heads, energies, moment)
    shared = np.einsum("sp,spi->pi", combination, heads)
    loss = plane_loss(heads, energies, moment, shared, absorbed)
    assert planes_residual(complex_products(heads, moment), energies) == pytest.approx(loss)
    for size in (1e-3, 1e-1, 1, 10):
        for _ in range(5):
            real, imaginary = size * random.standard_normal((2, *shared.shape))
            other = shared + real + 1j * imaginary
            square = np.einsum("pi,ij,pj->p", other.conj(), dense(moment), other).real
            factors = np.einsum("pi,ij,spj->sp", other.conj(), dense(moment), heads) / square
            assert plane_loss(heads, energies, moment, other, factors.conj()) >= loss * (1 - 1e-9)


def test_keys_that_differ_by_a_complex_factor_merge_without_loss() -> None:
    """Rotating and scaling a plane of a key, and its query back, changes nothing under rotary positions."""
    random = np.random.default_rng(2)
    first = planes(random)[0]
    factors = random.standard_normal((HEADS, 2)) + 1j * random.standard_normal((HEADS, 2))
    heads = factors[:, :, None] * first
    energies = random.uniform(0.1, 3, (HEADS, 2))
    combination, absorbed = merged_planes(heads, energies, None)
    shared = np.einsum("sp,spi->pi", combination, heads)
    assert plane_loss(heads, energies, None, shared, absorbed) < 1e-18 * float((energies * 10).sum())


def test_equal_keys_come_out_as_they_went_in() -> None:
    """Queries of heads that agree already need not change."""
    first = planes(np.random.default_rng(3))[0]
    combination, absorbed = merged_planes(np.stack([first] * HEADS), np.ones((HEADS, 2)), None)
    np.testing.assert_allclose(np.einsum("sp,pi->pi", combination, first), first, atol=1e-12)
    np.testing.assert_allclose(absorbed, 1, atol=1e-12)


def test_a_diagonal_moment_is_its_matrix() -> None:
    """The gain of a norm is kept as a vector to save memory."""
    random = np.random.default_rng(4)
    rows, diagonal = random.standard_normal((5, INPUTS)), random.uniform(0.1, 2, INPUTS)
    np.testing.assert_allclose(
        inner_products(rows, diagonal), inner_products(rows, np.diag(diagonal)), atol=1e-12
    )
