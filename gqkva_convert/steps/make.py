"""A plan turned into one step per output tensor, with every source tensor accounted for."""

from __future__ import annotations

from gqkva_convert.errors import CheckpointError, FamilyError
from gqkva_convert.plans.plan import Plan
from gqkva_convert.source.model import SourceModel
from gqkva_convert.source.tensors import drop_reason, is_other
from gqkva_convert.steps.blocks import block_steps, out_dtype
from gqkva_convert.steps.step import Step, Steps


def make_steps(model: SourceModel, plan: Plan, tied: dict[str, str] | None = None) -> Steps:
    """Make a step for every tensor of the source, or record why it has none.

    Args:
        model: The source.
        plan: Layouts, rules and dtype.
        tied: Tensors to drop because another holds the same bytes, each with the reason.

    Raises:
        FamilyError: A tensor is missing, has the wrong shape, or is not known to the family's table.
        CheckpointError: The index names a tensor that no file holds and that transformers needs.
        WeightError: A tensor to be merged is quantised.
    """
    if len(model.blocks) != len(plan.blocks):
        raise FamilyError(
            f"{model.checkpoint.folder} has {len(model.blocks)} attention blocks, the plan {len(plan.blocks)}"
        )
    claimed: dict[str, list[Step]] = {}
    also_claimed: set[str] = set()
    for block, block_plan in zip(model.blocks, plan.blocks, strict=True):
        for step in block_steps(model, block, block_plan, plan):
            claimed.setdefault(step.source.name, []).append(step)
            also_claimed.update(piece.tensor.name for head in step.heads for piece in head.pieces)
    dropped: dict[str, str] = {}
    for name, tensor in model.checkpoint.tensors.items():
        if name in claimed or name in also_claimed:
            continue
        reason = (tied or {}).get(name) or drop_reason(model, name)
        if reason is not None:
            dropped[name] = reason
        elif is_other(model, name):
            claimed[name] = [Step(name, out_dtype(tensor, plan), tensor.shape, tensor)]
        else:
            raise FamilyError(
                f"{tensor.file}: the {model.family.model_type} table does not know the tensor {name!r}; "
                "nothing was written"
            )
    _check_absent(model)
    ordered = [step for name in model.checkpoint.tensors for step in claimed.get(name, ())]
    return Steps(tuple(ordered), dropped)


def _check_absent(model: SourceModel) -> None:
    """Refuse tensors that the index alone names, unless transformers may tie or recompute them."""
    copies = {model.prefix + name for pair in model.family.tied for name in pair}
    copies |= {name for pair in model.family.tied for name in pair}
    for name in sorted(model.checkpoint.absent.keys() - copies):
        if drop_reason(model, name) is None:
            raise CheckpointError(
                f"{model.checkpoint.folder}: the index names {name!r}, which is not in "
                f"{model.checkpoint.absent[name]}; download it again"
            )
