"""A block's recorded calls and the original block's outputs, sequences of one shape batched."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gqkva_convert.refinement.block_network import BlockNetwork, TensorHeads, positions_of

# Positions in one batch where nothing is learned.
_SIDE_BY_SIDE = 4096


class BlockData:
    """A block's recorded calls, and the original block's outputs.

    Args:
        network: The block.
        calls: One call per sequence.
        output: Its original output projection, ``(heads * head_dim, hidden)``, heads in the source's order.

    Attributes:
        answers: The original block's output for each call, ``(positions, hidden)`` without padding.
        energy: Their sum of squares.
        alike: Numbers of the calls that can run in one batch, a list for each shape.
    """

    def __init__(self, network: BlockNetwork, calls: Sequence[dict[str, Any]], output: Tensor) -> None:
        self.network = network
        self.calls = list(calls)
        shapes: dict[Any, list[int]] = {}
        for number, call in enumerate(self.calls):
            shapes.setdefault(_shape(call), []).append(number)
        self.alike = list(shapes.values())
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for numbers in self.parts():
                answer = network.attended(None, self.joined(numbers)) @ output
                valid = [self.calls[number]["valid"] for number in numbers]
                sizes = [
                    len(answer) // len(numbers) if one is None else int(one.bool().sum()) for one in valid
                ]
                found |= dict(zip(numbers, torch.split(answer, sizes), strict=True))
        self.answers = [found[number] for number in range(len(self.calls))]
        self.energy = sum(float(answer.square().sum()) for answer in self.answers)

    def regrouped(self, network: BlockNetwork) -> BlockData:
        """Return the same data for the block under another plan, which changes no answer."""
        other = copy.copy(self)
        other.network = network
        return other

    def parts(self) -> Iterator[list[int]]:
        """Yield all calls once, those of one shape together up to `_SIDE_BY_SIDE` positions."""
        for numbers in self.alike:
            step = max(1, _SIDE_BY_SIDE // max(positions_of(self.calls[numbers[0]]), 1))
            for start in range(0, len(numbers), step):
                yield numbers[start : start + step]

    def joined(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return calls of one shape as one batch."""
        call: dict[str, Any] = _batch([self.calls[number] for number in numbers])
        return call

    def joined_answers(self, numbers: Sequence[int]) -> Tensor:
        """Return the original block's output for `joined` calls, ``(positions, hidden)``."""
        return torch.cat([self.answers[number] for number in numbers])

    def draws(self, positions: int, seed: int) -> Iterator[list[list[int]]]:
        """Yield batches for a fit's steps without end: lists of calls of one shape, each call once per epoch.

        Args:
            positions: Least number of positions in a step, if there are enough.
            seed: Seed of the order.
        """
        generator = torch.Generator().manual_seed(seed)

        def shuffled(values: Sequence[Any]) -> list[Any]:
            return [values[number] for number in torch.randperm(len(values), generator=generator).tolist()]

        while True:
            parts: list[list[int]] = []
            for numbers in self.alike:
                parts += self._cut(shuffled(numbers), positions)
            step: list[list[int]] = []
            drawn = False
            for part in shuffled(parts):
                step.append(part)
                if sum(len(self.answers[number]) for one in step for number in one) >= positions:
                    yield step
                    step, drawn = [], True
            if not drawn:
                yield step

    def _cut(self, numbers: Sequence[int], positions: int) -> list[list[int]]:
        parts: list[list[int]] = [[]]
        for number in numbers:
            if sum(len(self.answers[one]) for one in parts[-1]) >= positions:
                parts.append([])
            parts[-1].append(number)
        return parts

    def error(self, heads: TensorHeads) -> float:
        """Return the squared error of the block's output relative to its energy."""
        output = self.network.output_weight(heads)
        total = 0.0
        with torch.no_grad():
            for numbers in self.parts():
                given = self.network.attended(heads, self.joined(numbers)) @ output
                total += float((given - self.joined_answers(numbers)).square().sum())
        return total / max(self.energy, 1e-30)


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return tuple((name, _shape(part)) for name, part in value.items())
    return tuple(_shape(part) for part in value) if isinstance(value, (tuple, list)) else value


def _batch(values: Sequence[Any]) -> Any:
    """Batch the values of several sequences; values that all share, or of no sequence, are kept once."""
    first = values[0]
    if isinstance(first, Tensor):
        is_shared = len(values) > 1 and all(value.data_ptr() == first.data_ptr() for value in values)
        return first if is_shared or first.ndim == 0 or len(first) != 1 else torch.cat(list(values))
    if isinstance(first, dict):
        return {name: _batch([value[name] for value in values]) for name in first}
    if isinstance(first, (tuple, list)):
        return tuple(_batch(part) for part in zip(*values, strict=True))
    return first
