"""Steps of a conversion: how each output tensor is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gqkva_convert.checkpoint.dtypes import tensor_bytes
from gqkva_convert.checkpoint.header import StoredTensor
from gqkva_convert.plans.plan import BlockPlan, GroupRules
from gqkva_convert.source.stored_block import StoredBlock
from gqkva_convert.transforms.blocks import HeadMerge
from gqkva_convert.transforms.merge import RULES


@dataclass(frozen=True)
class Piece:
    """One head's part of a source tensor: ``size`` entries from ``start`` along the step's axis."""

    tensor: StoredTensor
    start: int


@dataclass(frozen=True)
class OutputHead:
    """One stored head of the result.

    Attributes:
        pieces: Heads that it is merged from; a single one is copied, none gives zeros.
        weights: The same heads in the projection's weight, which decides their shares, and the axis there.
        role: Query, key, value or output.
        stored: Its number among the stored heads of that role.
    """

    pieces: tuple[Piece, ...]
    weights: tuple[Piece, ...]
    weights_axis: int
    role: str = ""
    stored: int = 0


@dataclass(frozen=True)
class BlockMerge:
    """An attention block whose projections merge together.

    Attributes:
        block: The block as the source stores it.
        plan: Its layouts and groups.
        rules: The rule of each of its groups.
    """

    block: StoredBlock
    plan: BlockPlan
    rules: GroupRules

    def head_merge(self) -> HeadMerge:
        """Return the arguments of `merge_heads`.

        Raises:
            FamilyError: The closed form needs rotary frequencies, and their kind is not known.
        """
        order = tuple(head for head in self.plan.order if head is not None)
        assert len(order) == len(self.plan.order)
        planes, norm = self.block.planes, self.block.norm
        is_closed = any(RULES[rule].group_method == "closed-form" for rule in self.rules.scores)
        return HeadMerge(
            self.plan.source,
            self.plan.target,
            order,
            self.rules.scores,
            self.rules.values,
            planes.first,
            planes.second,
            planes.turning() if is_closed and norm == "none" else None,
            norm,
            self.block.has_input_bias,
        )


@dataclass(frozen=True)
class Step:
    """How one output tensor is made.

    Attributes:
        name: Its name.
        dtype: Its safetensors dtype.
        shape: Its shape.
        source: The source tensor whose place in the files it takes.
        content: What it holds; ``random`` merging treats biases and norms differently from weights.
        axis: Axis of the heads; meaningless without ``heads``.
        size: Entries per head along the axis.
        heads: Its heads in order, or nothing for a tensor that is copied whole.
        merge: The block it is merged with, where the rule merges a block's projections together.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: StoredTensor
    content: Literal["weight", "bias", "norm", "other"] = "other"
    axis: int = 0
    size: int = 0
    heads: tuple[OutputHead, ...] = ()
    merge: BlockMerge | None = None

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.dtype, self.shape)

    @property
    def is_copy(self) -> bool:
        """Return whether the output is the source tensor, byte for byte."""
        return not self.heads and self.dtype == self.source.dtype

    @property
    def operation(self) -> str:
        if self.is_copy:
            return "copy"
        if not self.heads:
            return "cast"
        if self.merge is not None:
            return "merge"
        return "reorder" if all(len(head.pieces) <= 1 for head in self.heads) else "merge"


@dataclass(frozen=True)
class Steps:
    """All steps of a conversion, in source order, and the source tensors dropped, each with its reason."""

    steps: tuple[Step, ...]
    dropped: dict[str, str]

    @property
    def nbytes(self) -> int:
        return sum(step.nbytes for step in self.steps)


def describe(steps: Steps) -> dict[str, Any]:
    """Count tensors and bytes by operation, for reports and `--dry-run`."""
    table: dict[str, dict[str, int]] = {}
    for step in steps.steps:
        row = table.setdefault(step.operation, {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += step.nbytes
    return table
