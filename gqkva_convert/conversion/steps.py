"""A plan turned into one step per output tensor, with every source tensor accounted for.

A tensor that holds heads is a row of equal pieces along one axis, a piece a head; an output tensor is
assembled from such pieces. Everything else is copied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from gqkva_convert.architectures import Projection
from gqkva_convert.checkpoint.dtypes import FLOAT_BY_NAME, FLOATS, tensor_bytes
from gqkva_convert.checkpoint.header import StoredTensor
from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.conversion.model import Block, SourceModel, active_norms, projection_tensor, stored_count
from gqkva_convert.conversion.plan import BlockPlan, GroupRules, Plan
from gqkva_convert.errors import FamilyError, WeightError
from gqkva_convert.heads import ROLES, HeadLayout
from gqkva_convert.transforms.merge import RULES


@dataclass(frozen=True)
class Piece:
    """One head's part of a source tensor: ``size`` entries from ``start`` along the step's axis."""

    tensor: StoredTensor
    start: int


@dataclass(frozen=True)
class Merged:
    """One stored head of the result.

    Attributes:
        pieces: What it is merged from; one piece is taken as it is, none is zeros.
        weights: The same heads in the projection's weight, which decides their shares, and the axis there.
        role: What it is: query, key, value or output.
        stored: Its number among the stored heads of that role.
    """

    pieces: tuple[Piece, ...]
    weights: tuple[Piece, ...]
    weights_axis: int
    role: str = ""
    stored: int = 0


@dataclass(frozen=True)
class Joint:
    """An attention block whose projections are merged together.

    Attributes:
        model: The source.
        block: The block.
        plan: What happens to its heads.
        rules: The rule of each of its groups.
    """

    model: SourceModel
    block: Block
    plan: BlockPlan
    rules: GroupRules


@dataclass(frozen=True)
class Step:
    """How one output tensor comes about.

    Attributes:
        name: Its name.
        dtype: Its safetensors dtype.
        shape: Its shape.
        source: The source tensor whose place in the files it takes.
        content: What it holds; ``random`` merging treats biases and norms differently from weights.
        axis: Axis of the heads; meaningless without ``heads``.
        size: Entries a head along the axis.
        heads: Its heads in order, or nothing for a tensor that is copied whole.
        joint: The block it is merged with, where the rule merges a block's projections together.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: StoredTensor
    content: Literal["weight", "bias", "norm", "other"] = "other"
    axis: int = 0
    size: int = 0
    heads: tuple[Merged, ...] = ()
    joint: Joint | None = None

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.dtype, self.shape)

    @property
    def is_copy(self) -> bool:
        """Whether the output is the source tensor, byte for byte."""
        return not self.heads and self.dtype == self.source.dtype

    @property
    def operation(self) -> str:
        if self.is_copy:
            return "copy"
        if not self.heads:
            return "cast"
        if self.joint is not None:
            return "merge"
        return "reorder" if all(len(head.pieces) <= 1 for head in self.heads) else "merge"


@dataclass(frozen=True)
class Steps:
    """All steps of a conversion, in source order, and the source tensors left out, each with its reason."""

    steps: tuple[Step, ...]
    dropped: dict[str, str]

    @property
    def nbytes(self) -> int:
        return sum(step.nbytes for step in self.steps)


def make_steps(model: SourceModel, plan: Plan, tied: dict[str, str] | None = None) -> Steps:
    """Account for every tensor of the source.

    Args:
        model: The source.
        plan: What to do with its heads.
        tied: Tensors to leave out because another holds the same bytes, each with the reason.

    Raises:
        FamilyError: A tensor is missing, has the wrong shape, or is not known to the family's table.
        WeightError: A tensor to be merged is quantised.
    """
    if len(model.blocks) != len(plan.blocks):
        raise FamilyError(
            f"{model.checkpoint.folder} has {len(model.blocks)} attention blocks, the plan {len(plan.blocks)}"
        )
    claimed: dict[str, list[Step]] = {}
    also_claimed: set[str] = set()
    for block, block_plan in zip(model.blocks, plan.blocks, strict=True):
        for step in _block_steps(model, block, block_plan, plan):
            claimed.setdefault(step.source.name, []).append(step)
            also_claimed.update(piece.tensor.name for head in step.heads for piece in head.pieces)
        also_claimed.update(_merged_away(model, block))
    dropped: dict[str, str] = {}
    for name, tensor in model.checkpoint.tensors.items():
        if name in claimed or name in also_claimed:
            continue
        reason = (tied or {}).get(name) or _drop_reason(model, name)
        if reason is not None:
            dropped[name] = reason
        elif _is_other(model, name):
            claimed[name] = [Step(name, _out_dtype(tensor, plan), tensor.shape, tensor)]
        else:
            raise FamilyError(
                f"{tensor.file}: the {model.family.model_type} table does not know the tensor {name!r}; "
                "nothing was written"
            )
    ordered = [step for name in model.checkpoint.tensors for step in claimed.get(name, ())]
    return Steps(tuple(ordered), dropped)


def _out_dtype(tensor: StoredTensor, plan: Plan) -> str:
    if plan.dtype is None or tensor.dtype not in FLOATS:
        return tensor.dtype
    return FLOAT_BY_NAME[plan.dtype]


def _block_steps(model: SourceModel, block: Block, block_plan: BlockPlan, plan: Plan) -> list[Step]:
    steps = []
    joint = joint_block(model, block, block_plan, plan)
    for projection in block.attention.projections:
        weight = projection_tensor(model, block, projection, "weight")
        assert weight is not None
        heads = _projection_heads(projection, block_plan, weight, projection.head_axis)
        steps.append(_step(weight, "weight", projection.head_axis, heads, block_plan, plan, joint))
        bias = projection_tensor(model, block, projection, "bias")
        if bias is None:
            continue
        if projection.roles == ("output",):  # added after the heads are joined
            steps.append(Step(bias.name, _out_dtype(bias, plan), bias.shape, bias))
            continue
        moved = [
            replace(head, pieces=tuple(Piece(bias, piece.start) for piece in head.pieces)) for head in heads
        ]
        steps.append(_step(bias, "bias", 0, moved, block_plan, plan, joint))
    return (
        steps + _norm_steps(model, block, block_plan, plan) + _head_bias_steps(model, block, plan, block_plan)
    )


def _step(
    tensor: StoredTensor,
    content: Literal["weight", "bias", "norm"],
    axis: int,
    heads: list[Merged],
    block_plan: BlockPlan,
    plan: Plan,
    joint: Joint | None = None,
) -> Step:
    size = block_plan.target.head_dim
    shape = list(tensor.shape)
    shape[axis] = size * len(heads)
    dtype = _out_dtype(tensor, plan)
    step = Step(tensor.name, dtype, tuple(shape), tensor, content, axis, size, tuple(heads), joint)
    return _whole_if_unchanged(step) if joint is None else step


def joint_block(model: SourceModel, block: Block, block_plan: BlockPlan, plan: Plan) -> Joint | None:
    """The block as one whose projections merge together, if its rule is such and it has anything to merge."""
    groups = (group for role in ROLES for group in block_plan.groups(role))
    if not RULES[plan.merge].is_joint or all(len(group) == 1 for group in groups):
        return None
    rule = "closed-form" if plan.merge == "auto" else plan.merge  # rules are not chosen yet
    rules = block_plan.rules or GroupRules.same(rule, block_plan.target)
    return Joint(model, block, block_plan, rules)


def _whole_if_unchanged(step: Step) -> Step:
    """A step that puts every piece back where it was is a copy."""
    unchanged = step.shape == step.source.shape and all(
        len(head.pieces) == 1
        and head.pieces[0].tensor is step.source
        and head.pieces[0].start == place * step.size
        for place, head in enumerate(step.heads)
    )
    return Step(step.name, step.dtype, step.shape, step.source, step.content) if unchanged else step


def _projection_heads(
    projection: Projection, block_plan: BlockPlan, weight: StoredTensor, axis: int
) -> list[Merged]:
    """The result's heads of one projection, in stored order."""
    by_role = {
        role: [
            replace(
                _merged([head_start(projection, block_plan, role, head) for head in group], weight, axis),
                role=role,
                stored=stored,
            )
            for stored, group in enumerate(
                [() if head is None else (head,) for head in block_plan.order]
                if role == "output"
                else block_plan.groups(role)
            )
        ]
        for role in projection.roles
    }
    if _is_side_by_side(projection, block_plan.target):
        return [head for trio in zip(*by_role.values(), strict=True) for head in trio]
    return [head for heads in by_role.values() for head in heads]


def _is_side_by_side(projection: Projection, layout: HeadLayout) -> bool:
    """Whether q, k and v of each head lie together. Where their numbers differ, all q, all k and all v do."""
    counts = {stored_count(layout, role) for role in projection.roles}
    return projection.packing == "per_head" and len(counts) == 1


def _merged(starts: list[int], weight: StoredTensor, axis: int) -> Merged:
    pieces = tuple(Piece(weight, start) for start in starts)
    return Merged(pieces, pieces, axis)


def head_start(projection: Projection, block_plan: BlockPlan, role: str, head: int) -> int:
    """Where a stored head of the source begins along the projection's head axis."""
    place = projection.roles.index(role)
    if _is_side_by_side(projection, block_plan.source):
        return (head * len(projection.roles) + place) * block_plan.source.head_dim
    before = sum(stored_count(block_plan.source, earlier) for earlier in projection.roles[:place])
    return (before + head) * block_plan.source.head_dim


def _norm_steps(model: SourceModel, block: Block, block_plan: BlockPlan, plan: Plan) -> list[Step]:
    steps = []
    for norm in active_norms(model.config, block.attention):
        projection = next(p for p in block.attention.projections if norm.role in p.roles)
        weight = projection_tensor(model, block, projection, "weight")
        assert weight is not None
        groups = block_plan.groups(norm.role)
        shares = [
            _merged(
                [head_start(projection, block_plan, norm.role, head) for head in group],
                weight,
                projection.head_axis,
            )
            for group in groups
        ]
        if norm.span == "shared":
            tensor = _norm_tensor(model, block, norm.name)
            steps.append(Step(tensor.name, _out_dtype(tensor, plan), tensor.shape, tensor, "norm"))
        elif norm.span == "all_heads":
            tensor = _norm_tensor(model, block, norm.name)
            size = block_plan.source.head_dim
            heads = [
                Merged(tuple(Piece(tensor, head * size) for head in group), share.weights, share.weights_axis)
                for group, share in zip(groups, shares, strict=True)
            ]
            steps.append(_step(tensor, "norm", 0, heads, block_plan, plan))
        else:
            for stored, (group, share) in enumerate(zip(groups, shares, strict=True)):
                parts = [_norm_tensor(model, block, norm.name, head) for head in group]
                pieces = tuple(Piece(part, 0) for part in parts)
                merged = [Merged(pieces, share.weights, share.weights_axis)]
                step = _step(parts[0], "norm", 0, merged, block_plan, plan)
                steps.append(replace(step, name=block.tensor_name(norm.name, stored)))
    return steps


def _norm_tensor(model: SourceModel, block: Block, template: str, head: int = 0) -> StoredTensor:
    name = block.tensor_name(template, head)
    tensor = model.checkpoint.tensors.get(name)
    if tensor is None:
        raise FamilyError(f"{block.where}: {name!r} is not in {model.checkpoint.folder}")
    if tensor.dtype not in FLOATS:
        raise WeightError(f"{block.where}: {name!r} is stored as {tensor.dtype}, which cannot be merged")
    return tensor


def _head_bias_steps(model: SourceModel, block: Block, plan: Plan, block_plan: BlockPlan) -> list[Step]:
    """A bias table bound to head indices is copied: such blocks keep their heads in place."""
    bias = block.attention.head_bias
    if bias is None:
        return []
    assert block_plan.order == tuple(range(len(block_plan.order)))
    if bias.name is None or block.layer not in bias.layers:
        return []
    tensor = _norm_tensor(model, block, bias.name)
    return [Step(tensor.name, _out_dtype(tensor, plan), tensor.shape, tensor)]


def _merged_away(model: SourceModel, block: Block) -> set[str]:
    """Per-head norm tensors of the source; those of merged heads have no tensor of their own afterwards."""
    return {
        block.tensor_name(norm.name, head)
        for norm in active_norms(model.config, block.attention)
        if norm.span == "per_head"
        for head in range(stored_count(block.layout, norm.role))
    }


def tied_copies(model: SourceModel, reader: TensorReader) -> dict[str, str]:
    """Tensors that repeat, byte for byte, the tensor that transformers ties them to.

    Only where the configuration says that embeddings are tied; an equal copy is then a waste, and some
    loaders untie what is stored twice.
    """
    if not model.config.get("tie_word_embeddings"):
        return {}
    tensors, copies = model.checkpoint.tensors, {}
    for copy_name, original_name in model.family.tied:
        copy = tensors.get(copy_name) or tensors.get(model.prefix + copy_name)
        original = tensors.get(model.prefix + original_name) or tensors.get(original_name)
        if copy and original and copy is not original and _same_bytes(copy, original, reader):
            copies[copy.name] = f"the same bytes as {original.name}, which transformers ties it to"
    return copies


def _same_bytes(one: StoredTensor, other: StoredTensor, reader: TensorReader) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    chunk = 4 << 20
    return all(
        bool(
            (
                reader.read(one, at, min(chunk, one.nbytes - at))
                == reader.read(other, at, min(chunk, one.nbytes - at))
            ).all()
        )
        for at in range(0, one.nbytes, chunk)
    )


def _drop_reason(model: SourceModel, name: str) -> str | None:
    for template, reason in model.family.dropped.items():
        if any(_matches(prefix + template, name, model) for prefix in {model.prefix, ""}):
            return reason
    return None


def _is_other(model: SourceModel, name: str) -> bool:
    templates = [model.prefix + template for template in model.family.others]
    return any(_matches(template, name, model) for template in (*templates, *model.family.heads))


def _matches(template: str, name: str, model: SourceModel) -> bool:
    found = _pattern(template).fullmatch(name)
    if found is None:
        return False
    layers = 1 + max(block.layer for block in model.blocks)
    return all(int(number) < layers for number in found.groups())


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template)
    return re.compile(text.replace(re.escape("{layer}"), r"(\d+)").replace(re.escape("*"), ".+"))


def describe(steps: Steps) -> dict[str, Any]:
    """Counts and bytes by operation, for reports and `--dry-run`."""
    table: dict[str, dict[str, int]] = {}
    for step in steps.steps:
        row = table.setdefault(step.operation, {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += step.nbytes
    return table
