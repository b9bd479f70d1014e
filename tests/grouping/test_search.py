"""Searches find the best groups, or come as near as a search can."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest

from gqkva_convert.grouping.costs import mean_cost
from gqkva_convert.grouping.search import Groups, Search, neighbour_groups, search_grid


def equal_partitions(units: tuple[int, ...], size: int) -> Iterator[Groups]:
    if not units:
        yield ()
        return
    for others in combinations(units[1:], size - 1):
        rest = tuple(unit for unit in units[1:] if unit not in others)
        for groups in equal_partitions(rest, size):
            yield ((units[0], *others), *groups)


def partitions(units: tuple[int, ...], count: int) -> Iterator[Groups]:
    if count == 1:
        yield (units,)
        return
    for size in range(1, len(units) - count + 2):
        for others in combinations(units[1:], size - 1):
            rest = tuple(unit for unit in units[1:] if unit not in others)
            for groups in partitions(rest, count - 1):
                yield ((units[0], *others), *groups)


def similarities(random: np.random.Generator, units: int) -> np.ndarray:
    heads = random.standard_normal((units, 5)) + 0.7 * random.standard_normal((1, 5))
    return heads @ heads.T


@pytest.mark.parametrize("unequal", [False, True])
def test_searches_find_the_best_groups_of_small_models(unequal: bool) -> None:
    """Against every partition, in at least 95 of 100 random cases; 100 more by the other search."""
    random = np.random.default_rng(int(unequal))
    found = 0
    for case in range(100):
        units = int(random.choice([4, 6, 8]))
        count = 2 if units < 8 else int(random.choice([2, 4]))
        cost = mean_cost(similarities(random, units))
        search = Search(cost, units, f"case {case}")
        groups = search.unequal(count) if unequal else search.equal(count)
        heads = tuple(range(units))
        everything = partitions(heads, count) if unequal else equal_partitions(heads, units // count)
        best = min(search.total(groups) for groups in everything)
        found += search.total(groups) <= best * (1 + 1e-9)
        assert sorted(head for group in groups for head in group) == list(heads)
        assert unequal or {len(group) for group in groups} == {units // count}
    assert found >= 95


def test_hidden_groups_are_found_again() -> None:
    """Thirty-two heads in eight groups, shuffled: too many partitions to try them all."""
    random = np.random.default_rng(2)
    centres = random.standard_normal((8, 16))
    labels = random.permutation(np.repeat(np.arange(8), 4))
    heads = centres[labels] + 0.1 * random.standard_normal((32, 16))
    groups = Search(mean_cost(heads @ heads.T), 32, "seed").equal(8)
    assert all(len({int(labels[head]) for head in group}) == 1 for group in groups)


def test_the_same_seed_gives_the_same_groups() -> None:
    """A plan must be the same on every machine."""
    cost = mean_cost(similarities(np.random.default_rng(3), 12))
    assert Search(cost, 12, "a").unequal(4) == Search(cost, 12, "a").unequal(4)


def test_neighbours_that_do_not_divide_differ_by_one() -> None:
    assert neighbour_groups(7, 3) == ((0, 1, 2), (3, 4), (5, 6))


def test_a_grid_finds_rows_and_columns_that_belong_together() -> None:
    """Heads made of a row's and a column's pattern, shuffled, fall into their places again."""
    random = np.random.default_rng(4)
    rows, columns = random.standard_normal((2, 12)), random.standard_normal((4, 12))
    places = random.permutation(8)
    across = rows[places // 4] + 0.05 * random.standard_normal((8, 12))
    down = columns[places % 4] + 0.05 * random.standard_normal((8, 12))
    grid = search_grid(mean_cost(across @ across.T), mean_cost(down @ down.T), 2, 4, "seed")
    assert {len({int(places[head]) // 4 for head in row}) for row in grid} == {1}
    assert {len({int(places[head]) % 4 for head in column}) for column in zip(*grid, strict=True)} == {1}
