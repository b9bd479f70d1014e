"""Every choice of a conversion that depends on weights or data: groups, numbers of heads, merge rules."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from gqkva_convert.errors import LayoutError, UsageError
from gqkva_convert.heads import GROUPINGS
from gqkva_convert.planning.findings import Findings
from gqkva_convert.planning.searches import search_plan
from gqkva_convert.planning.trials import choose_grids
from gqkva_convert.plans.plan import BlockPlan, GroupRules, Plan, chosen_kinds, plan_blocks
from gqkva_convert.plans.request import Request
from gqkva_convert.progress import Stages, no_stages
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.refinement.fit import choose_rules
from gqkva_convert.source.model import Block, SourceModel
from gqkva_convert.steps.blocks import block_merges
from gqkva_convert.transforms.merge import GROUP_RULES, RULES

if TYPE_CHECKING:
    from gqkva_convert.checkpoint.hub import Located


def request_plan(model: SourceModel, request: Request) -> Plan:
    """Return the plan that follows from the request alone; groups to be searched for are neighbours so far.

    Raises:
        LayoutError: The numbers of heads do not fit the model.
        UsageError: The options do not.
    """
    grouping = request.chosen_grouping
    if request.variant is not None:
        name = request.variant.slug
        blocks = plan_blocks(model, request.variant, request.blocks, grouping, request.seed)
    else:
        if not (grouping in GROUPINGS and GROUPINGS[grouping].is_searched):
            raise UsageError(f"--kv-budget needs groups that are searched for, not --grouping {grouping}")
        budget_heads(model, request)
        name = f"kv-{str(request.kv_budget).replace('%', 'pct')}"
        blocks = tuple(BlockPlan.unchanged(block.place, block.layout) for block in model.blocks)
        shared = next((block.source.name for block in blocks if block.shares_queries), None)
        if shared is not None:
            raise LayoutError(
                f"the source is {shared}; its heads cannot be merged further, convert the original model"
            )
    return Plan(
        name,
        grouping,
        request.chosen_merge,
        request.seed,
        request.dtype,
        blocks,
        calibration=request.calibration,
        refine=request.refinements,
    )


def complete_plan(
    located: Located,
    model: SourceModel,
    plan: Plan,
    request: Request | None = None,
    stages: Stages = no_stages,
    *,
    compare: bool = False,
) -> tuple[Plan, CalibratedModel | None, Findings | None]:
    """Make the choices that a plan leaves to weights and data.

    Args:
        located: The source.
        model: The same, opened.
        plan: What `request_plan` made of the request, or a plan read from a file.
        request: What is asked; None for a plan from a file, whose groups are chosen already.
        stages: Shows progress.
        compare: Also search other groupings, for plots.

    Returns:
        The plan, the source with its data where there are any, and what a search for groups found.

    Raises:
        GqkvaError: It cannot be.
    """
    calibrated = findings = None
    if plan.calibration is not None:
        calibrated = CalibratedModel(located, model, plan.calibration, stages)
    if request is not None and GROUPINGS[plan.grouping].is_searched:
        budget = None if request.kv_budget is None else budget_heads(model, request)
        blocks = _chosen_blocks(model, request)
        plan, findings = search_plan(model, plan, blocks, budget, calibrated, stages, compare)
        if calibrated is not None and plan.grouping == "loss" and "layerwise" in plan.refine:
            before, plan = plan, choose_grids(model, plan, calibrated, stages)
            findings = findings.with_grids(before, plan)
    if calibrated is not None and plan.wants_rules:
        plan = choose_plan_rules(model, plan, calibrated, stages)
    return plan, calibrated, findings


def budget_heads(model: SourceModel, request: Request) -> int:
    """Return the budget in heads.

    Raises:
        LayoutError: It is too small or too large.
        UsageError: It is no number or share.
    """
    text = str(request.kv_budget)
    blocks = _chosen_blocks(model, request)
    total = sum(block.layout.num_key_heads for block in blocks)
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?=%)|\d+)(%?)", text)
    if found is None:
        raise UsageError(f"--kv-budget {text!r}: write a share such as 25% or a number of heads")
    heads = int(float(found[1]) * total / 100 + 1e-9) if found[2] else int(float(found[1]))
    if not len(blocks) <= heads <= total:
        raise LayoutError(
            f"--kv-budget {text}: {heads} key/value heads for {len(blocks)} layers, which have {total}; "
            f"give {len(blocks)} to {total}, or {100 * len(blocks) / total:.3g}% to 100%"
        )
    return heads


def _chosen_blocks(model: SourceModel, request: Request) -> list[Block]:
    """Return the blocks selected by ``request.blocks``."""
    kinds = chosen_kinds(model.family, request.blocks)
    return [block for block in model.blocks if block.attention.kind in kinds]


def choose_plan_rules(model: SourceModel, plan: Plan, calibrated: CalibratedModel, stages: Stages) -> Plan:
    """Return the plan with the rule for each group that errs least on held-out data."""
    import torch

    from gqkva_convert.refinement.fitted import BlockLaboratory

    merges = block_merges(model, plan)
    advance = stages("comparing merge rules", len(merges))
    planned = {block.place: block for block in plan.blocks}
    with model.checkpoint.reader() as reader, torch.no_grad():
        for place, merge in merges.items():
            laboratory = BlockLaboratory(merge, calibrated, reader, set(merges))
            candidates = {rule: laboratory.merged(rule) for rule in GROUP_RULES if RULES[rule].is_tried}
            target = merge.plan.target
            apart = target.key == target.value and not merge.plan.shares_queries
            found = choose_rules(candidates, laboratory.original_outputs, laboratory.held, apart)
            values = found if apart else (found[0],) * target.num_value_heads
            planned[place] = replace(merge.plan, rules=GroupRules(found, values))
            advance(1)
    return replace(plan, blocks=tuple(planned.values()))
