"""Steps of an attention block: its projections, their biases, its norms and its table of biases.

A tensor that holds heads is a row of equal pieces along one axis, a piece a head; an output tensor is
assembled from such pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from gqkva_convert.checkpoint.dtypes import FLOAT_BY_NAME, FLOATS
from gqkva_convert.checkpoint.header import StoredTensor
from gqkva_convert.errors import FamilyError, WeightError
from gqkva_convert.heads import ROLES, Place
from gqkva_convert.plans.plan import BlockPlan, GroupRules, Plan
from gqkva_convert.source.model import Block, SourceModel
from gqkva_convert.source.stored_block import StoredBlock, StoredProjection, is_side_by_side, stored_block
from gqkva_convert.steps.step import BlockMerge, OutputHead, Piece, Step
from gqkva_convert.transforms.merge import RULES


def block_steps(model: SourceModel, block: Block, block_plan: BlockPlan, plan: Plan) -> list[Step]:
    """Return a step for each of the block's tensors."""
    stored = stored_block(model, block)
    merge = block_merge(stored, block_plan, plan)
    steps = []
    for projection in stored.projections:
        heads = _projection_heads(projection, block_plan)
        steps.append(_step(projection.weight, "weight", projection.head_axis, heads, block_plan, plan, merge))
        bias = projection.bias
        if bias is None:
            continue
        if projection.roles == ("output",):  # added after the heads are joined
            steps.append(Step(bias.name, out_dtype(bias, plan), bias.shape, bias))
            continue
        moved = [
            replace(head, pieces=tuple(Piece(bias, piece.start) for piece in head.pieces)) for head in heads
        ]
        steps.append(_step(bias, "bias", 0, moved, block_plan, plan, merge))
    norms = _norm_steps(model, block, stored, block_plan, plan)
    return steps + norms + _head_bias_steps(model, block, plan, block_plan)


def block_merge(block: StoredBlock, block_plan: BlockPlan, plan: Plan) -> BlockMerge | None:
    """Return how the block's projections merge together; None under another rule or with nothing to merge."""
    groups = (group for role in ROLES for group in block_plan.groups(role))
    if not RULES[plan.merge].is_joint or all(len(group) == 1 for group in groups):
        return None
    rule = "closed-form" if plan.merge == "auto" else plan.merge  # rules are not chosen yet
    return BlockMerge(block, block_plan, block_plan.rules or GroupRules.same(rule, block_plan.target))


def block_merges(model: SourceModel, plan: Plan) -> dict[Place, BlockMerge]:
    """Return the merge of every block whose heads merge, under a joint rule."""
    merges = (
        block_merge(stored_block(model, block), block_plan, plan)
        for block, block_plan in zip(model.blocks, plan.blocks, strict=True)
    )
    return {merge.block.place: merge for merge in merges if merge is not None}


def _step(
    tensor: StoredTensor,
    content: Literal["weight", "bias", "norm"],
    axis: int,
    heads: list[OutputHead],
    block_plan: BlockPlan,
    plan: Plan,
    merge: BlockMerge | None = None,
) -> Step:
    size = block_plan.target.head_dim
    shape = list(tensor.shape)
    shape[axis] = size * len(heads)
    dtype = out_dtype(tensor, plan)
    step = Step(tensor.name, dtype, tuple(shape), tensor, content, axis, size, tuple(heads), merge)
    return _whole_if_unchanged(step) if merge is None else step


def _whole_if_unchanged(step: Step) -> Step:
    """Make a step a copy where it puts every piece back where it was."""
    unchanged = step.shape == step.source.shape and all(
        len(head.pieces) == 1
        and head.pieces[0].tensor is step.source
        and head.pieces[0].start == place * step.size
        for place, head in enumerate(step.heads)
    )
    return Step(step.name, step.dtype, step.shape, step.source, step.content) if unchanged else step


def _projection_heads(projection: StoredProjection, block_plan: BlockPlan) -> list[OutputHead]:
    """Return the result's heads of one projection, in stored order."""
    by_role = {
        role: [
            replace(_output_head(projection, role, group), role=role, stored=stored)
            for stored, group in enumerate(
                [() if head is None else (head,) for head in block_plan.order]
                if role == "output"
                else block_plan.groups(role)
            )
        ]
        for role in projection.roles
    }
    if is_side_by_side(projection.packing, projection.roles, block_plan.target):
        return [head for trio in zip(*by_role.values(), strict=True) for head in trio]
    return [head for heads in by_role.values() for head in heads]


def _output_head(projection: StoredProjection, role: str, group: Sequence[int]) -> OutputHead:
    """Return the head that some stored heads of a projection merge into."""
    pieces = tuple(Piece(projection.weight, projection.starts[role][head]) for head in group)
    return OutputHead(pieces, pieces, projection.head_axis)


def _norm_steps(
    model: SourceModel, block: Block, stored: StoredBlock, block_plan: BlockPlan, plan: Plan
) -> list[Step]:
    steps = []
    for norm in stored.norms:
        projection = stored.projection(norm.role)
        groups = block_plan.groups(norm.role)
        shares = [_output_head(projection, norm.role, group) for group in groups]
        if norm.span == "shared":
            tensor = _norm_tensor(model, block, norm.name)
            steps.append(Step(tensor.name, out_dtype(tensor, plan), tensor.shape, tensor, "norm"))
        elif norm.span == "all_heads":
            tensor = _norm_tensor(model, block, norm.name)
            size = block_plan.source.head_dim
            heads = [
                replace(share, pieces=tuple(Piece(tensor, head * size) for head in group))
                for group, share in zip(groups, shares, strict=True)
            ]
            steps.append(_step(tensor, "norm", 0, heads, block_plan, plan))
        else:
            for number, (group, share) in enumerate(zip(groups, shares, strict=True)):
                parts = [_norm_tensor(model, block, norm.name, head) for head in group]
                merged = [replace(share, pieces=tuple(Piece(part, 0) for part in parts))]
                step = _step(parts[0], "norm", 0, merged, block_plan, plan)
                steps.append(replace(step, name=block.tensor_name(norm.name, number)))
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
    """Return the step that copies a bias table bound to head indices; such blocks keep their heads' order."""
    bias = block.attention.head_bias
    if bias is None:
        return []
    assert block_plan.order == tuple(range(len(block_plan.order)))
    if bias.name is None or block.layer not in bias.layers:
        return []
    tensor = _norm_tensor(model, block, bias.name)
    return [Step(tensor.name, out_dtype(tensor, plan), tensor.shape, tensor)]


def out_dtype(tensor: StoredTensor, plan: Plan) -> str:
    """Return the dtype that a tensor is written in: floats as the plan says, others unchanged."""
    if plan.dtype is None or tensor.dtype not in FLOATS:
        return tensor.dtype
    return FLOAT_BY_NAME[plan.dtype]
