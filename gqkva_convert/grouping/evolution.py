"""QCQA: groups by a genetic search, first within layers, then which layer gets how many (Joshi et al., 2024).

arXiv 2406.10247, section 3: NSGA-II on weight-sharing error and cache size. AC allows groups of any size, EC
only equal ones. The error is taken in an aligned frame, since it changes under rotations that leave the model
unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.errors import LayoutError, UsageError
from gqkva_convert.grouping.costs import mean_cost
from gqkva_convert.grouping.search import Groups
from gqkva_convert.heads import divisors

Array = NDArray[np.float64]

POPULATION = 64
GENERATIONS = 80


@dataclass(frozen=True)
class Front:
    """Trade-offs between error and cache, best first by error.

    Attributes:
        errors: Summed error of all layers.
        heads: Key/value heads of all layers together.
        choices: For each point, the groups of every layer.
    """

    errors: tuple[float, ...]
    heads: tuple[int, ...]
    choices: tuple[tuple[Groups, ...], ...]

    def within(self, budget: int) -> tuple[Groups, ...]:
        """Return the point of least error that keeps at most ``budget`` heads.

        Raises:
            LayoutError: There is none.
        """
        fitting = [number for number, heads in enumerate(self.heads) if heads <= budget]
        if not fitting:
            raise LayoutError(
                f"no point of the front keeps {budget} heads or fewer, the least is {min(self.heads)}"
            )
        return self.choices[min(fitting, key=lambda number: self.errors[number])]


def evolve(similarities: Sequence[Array], *, equal: bool, seed: int) -> Front:
    """Search groups within each layer, then the number of groups of each layer.

    Args:
        similarities: For each layer inner products of its heads, ``(heads, heads)``.
        equal: EC rather than AC.
        seed: Seed of the search.
    """
    options = [_layer_front(similarity, equal, seed + layer) for layer, similarity in enumerate(similarities)]
    counts = [sorted(option) for option in options]
    points: dict[int, tuple[float, tuple[Groups, ...]]] = {}

    def chosen(genome: Array) -> list[tuple[float, Groups]]:
        numbers = [count[min(int(gene), len(count) - 1)] for gene, count in zip(genome, counts, strict=True)]
        return [option[number] for option, number in zip(options, numbers, strict=True)]

    def point(layers: list[tuple[float, Groups]]) -> tuple[float, int]:
        return sum(error for error, _ in layers), sum(len(groups) for _, groups in layers)

    def evaluate(genomes: Array) -> Array:
        return np.array([point(chosen(genome)) for genome in genomes], dtype=float)

    def offer(layers: list[tuple[float, Groups]]) -> None:
        error, heads = point(layers)
        if heads not in points or error < points[heads][0]:
            points[heads] = error, tuple(groups for _, groups in layers)

    upper = np.array([len(count) for count in counts], dtype=float) - 1e-9
    for genome in _nsga2(evaluate, upper, seed):
        offer(chosen(genome))
    # A number of heads that every layer can keep is always on offer.
    for count in set.intersection(*(set(option) for option in options)):
        offer([option[count] for option in options])
    order = sorted(points, key=lambda heads: points[heads][0])
    return Front(
        tuple(points[heads][0] for heads in order), tuple(order), tuple(points[heads][1] for heads in order)
    )


def _layer_front(similarity: Array, equal: bool, seed: int) -> dict[int, tuple[float, Groups]]:
    """Return, for each number of groups of one layer, the least error found and its groups."""
    heads = len(similarity)
    cost = mean_cost(similarity)
    found: dict[int, tuple[float, Groups]] = {heads: (0.0, tuple((head,) for head in range(heads)))}
    allowed = divisors(heads)

    def groups_of(genome: Array) -> Groups:
        if equal:
            count = allowed[min(int(genome[-1] * len(allowed)), len(allowed) - 1)]
            order = np.argsort(genome[:-1], kind="stable").reshape(count, -1)
            groups = [tuple(sorted(int(head) for head in row)) for row in order]
        else:
            count = 1 + min(int(genome[-1] * heads), heads - 1)
            labels = np.minimum((genome[:-1] * count).astype(int), count - 1)
            groups = [tuple(int(h) for h in np.flatnonzero(labels == label)) for label in np.unique(labels)]
        return tuple(sorted(groups))

    def evaluate(genomes: Array) -> Array:
        rows = []
        for genome in genomes:
            groups = groups_of(genome)
            error = sum(cost(group) for group in groups)
            if len(groups) not in found or error < found[len(groups)][0]:
                found[len(groups)] = error, groups
            rows.append((error, len(groups)))
        return np.array(rows, dtype=float)

    _nsga2(evaluate, np.ones(heads + 1), seed)
    everything = tuple(range(heads))
    found.setdefault(1, (cost(everything), (everything,)))
    return found


def _nsga2(evaluate: Any, upper: Array, seed: int) -> Array:
    """Run NSGA-II over genomes between 0 and ``upper``, ``(genes,)``; return the last population."""
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.optimize import minimize
    except ImportError as error:
        raise UsageError("--grouping evolution needs pymoo; install gqkva-convert[evolution]") from error

    class Objectives(Problem):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__(n_var=len(upper), n_obj=2, xl=np.zeros(len(upper)), xu=upper)

        def _evaluate(self, x: Array, out: dict[str, Array], *args: Any, **options: Any) -> None:
            out["F"] = evaluate(x)

    result = minimize(
        Objectives(), NSGA2(pop_size=POPULATION), ("n_gen", GENERATIONS), seed=seed, verbose=False
    )
    return np.asarray(result.pop.get("X"))
