"""Searches for groups: swaps between groups, moves from one to another, from several starts.

Equal sizes: AsymGQA's symmetric search; unequal sizes with the number of groups fixed: its asymmetric search
(Chen et al., 2024, arXiv 2406.14963, section 3). Each start is followed down to where no swap (or move)
helps, then shaken, as the paper's accepted setbacks and returns to the best do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from gqkva_convert.grouping.costs import Cost, Group

Groups = tuple[Group, ...]

# Other starts, and shakes of each: many for few heads, fewer where a descent takes long.
_FEW_HEADS = 12
_STARTS, _SHAKES = (6, 2), (12, 4)


def neighbour_groups(units: int, count: int) -> Groups:
    """Return consecutive heads in groups as equal as possible, the larger ones first."""
    size, rest = divmod(units, count)
    ends = [number * size + min(number, rest) for number in range(count + 1)]
    return tuple(tuple(range(start, end)) for start, end in pairwise(ends))


class Search:
    """A search for groups of least summed cost.

    Args:
        cost: Cost of a group.
        units: Number of heads to group.
        seed: Any text; the same text gives the same groups.
    """

    def __init__(self, cost: Cost, units: int, seed: str) -> None:
        self.units = units
        self.random = random.Random(seed)
        self._cost = cost
        self._known: dict[Group, float] = {}

    def cost(self, group: Sequence[int]) -> float:
        """Return the cost of a group, computed once."""
        known = tuple(sorted(group))
        if known not in self._known:
            self._known[known] = self._cost(known)
        return self._known[known]

    def total(self, groups: Sequence[Sequence[int]]) -> float:
        """Return the summed cost of groups."""
        return sum(self.cost(group) for group in groups)

    def equal(self, count: int) -> Groups:
        """Return groups of equal size."""
        return self._best(neighbour_groups(self.units, count), moves=False)

    def unequal(self, count: int) -> Groups:
        """Return groups of any sizes."""
        return self._best(neighbour_groups(self.units, count), moves=True)

    def improve(self, groups: Groups, *, moves: bool) -> Groups:
        """Improve groups until no swap, or move, helps."""
        return _sort_groups(self._descend([list(group) for group in groups], moves))

    def _best(self, neighbours: Groups, moves: bool) -> Groups:
        best: list[list[int]] = [list(group) for group in neighbours]
        if len(best) in (1, self.units):
            return _sort_groups(best)
        best = self._descend(best, moves)
        best_total = self.total(best)
        sizes = [len(group) for group in neighbours]
        starts, shakes = (effort[self.units > _FEW_HEADS] for effort in (_STARTS, _SHAKES))
        for start in range(starts):
            current = self._greedy(sizes) if start == 0 else self._random(sizes)
            current = self._descend(current, moves)
            total = self.total(current)
            for _ in range(shakes):
                shaken = self._descend(self._shake(current), moves)
                if self.total(shaken) <= total:
                    current, total = shaken, self.total(shaken)
            if total < best_total - 1e-12 * abs(best_total):
                best, best_total = current, total
        return _sort_groups(best)

    def _random(self, sizes: list[int]) -> list[list[int]]:
        heads = list(range(self.units))
        self.random.shuffle(heads)
        places = iter(heads)
        return [[next(places) for _ in range(size)] for size in sizes]

    def _greedy(self, sizes: list[int]) -> list[list[int]]:
        """Fill groups one after another, each by the head that costs it least."""
        left = set(range(self.units))
        groups = []
        for size in sizes:
            group = [min(left)]
            left.discard(group[0])
            while len(group) < size:
                chosen = min(left, key=lambda head: (self.cost((*group, head)), head))
                group.append(chosen)
                left.discard(chosen)
            groups.append(group)
        return groups

    def _shake(self, groups: list[list[int]]) -> list[list[int]]:
        groups = [list(group) for group in groups]
        for _ in range(2):
            one, other = self.random.sample(range(len(groups)), 2)
            a, b = self.random.randrange(len(groups[one])), self.random.randrange(len(groups[other]))
            groups[one][a], groups[other][b] = groups[other][b], groups[one][a]
        return groups

    def _descend(self, groups: list[list[int]], moves: bool) -> list[list[int]]:
        groups = [list(group) for group in groups]
        improved = True
        while improved:
            improved = False
            for one, other in combinations(range(len(groups)), 2):
                better = self._better_pair(groups[one], groups[other], moves)
                if better is not None:
                    groups[one], groups[other] = better
                    improved = True
        return groups

    def _better_pair(
        self, one: list[int], other: list[int], moves: bool
    ) -> tuple[list[int], list[int]] | None:
        """Return the best swap or move between two groups, or None if none helps."""
        before = self.cost(one) + self.cost(other)
        best, found = before - 1e-12 * abs(before), None
        for changed_one, changed_other in _changes(one, other, moves):
            total = self.cost(changed_one) + self.cost(changed_other)
            if total < best:
                best, found = total, (changed_one, changed_other)
        return found


def _changes(one: list[int], other: list[int], moves: bool) -> Iterator[tuple[list[int], list[int]]]:
    for a in one:
        for b in other:
            yield [b if head == a else head for head in one], [a if head == b else head for head in other]
    if moves:
        for a in one if len(one) > 1 else ():
            yield [head for head in one if head != a], [*other, a]
        for b in other if len(other) > 1 else ():
            yield [*one, b], [head for head in other if head != b]


def _sort_groups(groups: list[list[int]]) -> Groups:
    """Sort groups by their first head, and heads within a group."""
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def search_grid(
    row_cost: Cost, column_cost: Cost, rows: int, columns: int, seed: str
) -> tuple[tuple[int, ...], ...]:
    """Assign heads to a grid: heads of a row share a query, heads of a column a key and a value.

    Args:
        row_cost: Cost of the heads of a row.
        column_cost: Cost of the heads of a column.
        rows: Number of shared queries.
        columns: Number of shared keys and values.
        seed: Any text.

    Returns:
        The grid, row by row.
    """
    heads = rows * columns
    down, across = Search(column_cost, heads, seed), Search(row_cost, heads, seed)
    shuffle = random.Random(seed)

    def total(grid: list[int]) -> float:
        by_row = [grid[row * columns : (row + 1) * columns] for row in range(rows)]
        return across.total(by_row) + down.total([grid[column::columns] for column in range(columns)])

    def descend(grid: list[int]) -> tuple[list[int], float]:
        best = total(grid)
        improved = True
        while improved:
            improved = False
            for a, b in combinations(range(heads), 2):
                grid[a], grid[b] = grid[b], grid[a]
                found = total(grid)
                if found < best - 1e-12 * abs(best):
                    best, improved = found, True
                else:
                    grid[a], grid[b] = grid[b], grid[a]
        return grid, best

    best, best_total = descend(list(range(heads)))
    for _ in range(_STARTS[heads > _FEW_HEADS]):
        start = list(range(heads))
        shuffle.shuffle(start)
        grid, found = descend(start)
        if found < best_total - 1e-12 * abs(best_total):
            best, best_total = grid, found
    return tuple(tuple(best[row * columns : (row + 1) * columns]) for row in range(rows))
