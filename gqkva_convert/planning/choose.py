"""Every choice of a conversion that looks at weights or data: groups, numbers of heads, merge rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gqkva_convert.errors import LayoutError, UsageError
from gqkva_convert.grouping.allocation import allocate
from gqkva_convert.grouping.costs import query_similarity
from gqkva_convert.grouping.evolution import evolve
from gqkva_convert.heads import SEARCHED, HeadLayout, divisors
from gqkva_convert.planning.findings import Findings, Place, merged_role, weigh
from gqkva_convert.planning.groups import (
    Grouped,
    block_plan,
    block_statistics,
    compare_groupings,
    grid_plan,
    search_groups,
    similarity,
)
from gqkva_convert.planning.trials import choose_grids
from gqkva_convert.plans.plan import (
    GROUP_RULES,
    BlockPlan,
    GroupRules,
    Plan,
    make_plan,
    plan_layouts,
)
from gqkva_convert.plans.request import Request
from gqkva_convert.progress import Stages, no_stages
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.refinement.fit import choose_rules
from gqkva_convert.source.model import Block, SourceModel
from gqkva_convert.source.rotary import block_turning

if TYPE_CHECKING:
    from gqkva_convert.checkpoint.hub import Located

# Rules that ``auto`` tries on held-out data.
_TRIED = tuple(rule for rule in GROUP_RULES if rule != "aligned")


def plan_model(
    located: Located,
    model: SourceModel,
    request: Request,
    stages: Stages = no_stages,
    *,
    compare: bool = False,
) -> tuple[Plan, CalibratedModel | None, Findings | None]:
    """Make every choice of a conversion.

    Args:
        located: The source.
        model: The same, opened.
        request: What is asked.
        stages: Shows progress.
        compare: Look at what other groupings would lose too, for pictures.

    Returns:
        The plan, the source with its data where there are any, and what a search for groups found.

    Raises:
        GqkvaError: It cannot be.
    """
    plan = request_plan(model, request)
    calibrated = None
    if request.calibration is not None:
        calibrated = CalibratedModel(located, model, request.calibration, stages)
    findings = None
    if request.chosen_grouping in SEARCHED or request.kv_budget is not None:
        plan, findings = _grouped(model, plan, request, calibrated, stages, compare)
    if calibrated is not None and plan.grouping == "loss" and "layerwise" in plan.refine:
        before, plan = plan, choose_grids(model, plan, calibrated, stages)
        if findings is not None:
            findings.forget_grids(before, plan)
    if plan.merge == "auto" and calibrated is not None:
        plan = choose_plan_rules(model, plan, calibrated, stages)
    return plan, calibrated, findings


def request_plan(model: SourceModel, request: Request) -> Plan:
    """The plan as far as it follows from the request alone; groups to be searched for are neighbours yet.

    Raises:
        LayoutError: The numbers of heads do not fit the model.
        UsageError: The options do not.
    """
    grouping = request.chosen_grouping
    searched = grouping in SEARCHED
    if request.kv_budget is not None:
        if not searched:
            raise UsageError(f"--kv-budget needs groups that are searched for, not --grouping {grouping}")
        budget_heads(model, request)
        layouts = [block.layout for block in model.blocks]
        blocks = tuple(
            BlockPlan(
                block.attention.kind, block.layer, layout, layout, tuple(range(layout.num_attention_heads))
            )
            for block, layout in zip(model.blocks, layouts, strict=True)
        )
        plan = Plan(
            f"kv-{request.kv_budget.replace('%', 'pct')}",
            grouping,
            "closed-form",
            request.seed,
            request.dtype,
            blocks,
        )
    else:
        variant = request.variant
        assert variant is not None
        plan = make_plan(
            model,
            variant,
            blocks=request.blocks,
            grouping="neighbour" if searched else grouping,
            merge="closed-form",
            seed=request.seed,
            dtype=request.dtype,
        )
    settings = request.calibration
    # Checked here; ``auto`` has no rules for its groups yet.
    merge = request.chosen_merge
    return replace(
        plan,
        grouping=grouping,
        merge=merge,
        calibration=settings,
        refine=request.refinements,
    )


def budget_heads(model: SourceModel, request: Request) -> int:
    """The budget in heads.

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
    """Blocks that are converted; a variant that changes nothing serves to read the kinds."""
    from gqkva_convert.plans.plan import chosen_kinds

    kinds = chosen_kinds(model.family, request.blocks)
    return [block for block in model.blocks if block.attention.kind in kinds]


def _grouped(
    model: SourceModel,
    plan: Plan,
    request: Request,
    calibrated: CalibratedModel | None,
    stages: Stages,
    compare: bool,
) -> tuple[Plan, Findings]:
    """The plan with groups that were searched for."""
    chosen = _chosen_blocks(model, request)
    grouping = request.chosen_grouping
    advance = stages(f"searching groups ({grouping})", len(chosen))
    targets: dict[Place, HeadLayout] = {(block.kind, block.layer): block.target for block in plan.blocks}
    if request.variant is not None:
        layouts = plan_layouts(model.family, model.blocks, request.variant, request.blocks)
        targets = {
            (block.attention.kind, block.layer): layout
            for block, layout in zip(model.blocks, layouts, strict=True)
        }
    planned: dict[Place, BlockPlan] = {}
    findings = Findings()
    curves: list[dict[int, Grouped]] = []
    with model.checkpoint.reader() as reader:
        for block in chosen:
            place = block.attention.kind, block.layer
            seed = f"{request.seed}/{place[0]}/{place[1]}"
            target = targets[place]
            shares_queries = target.num_query_heads < target.num_attention_heads
            measured = calibrated.measured(*place) if calibrated and grouping != "weights" else None
            statistics = block_statistics(model, block, reader, measured, shares_queries)
            findings.similarities[place] = similarity(statistics, grouping)
            if shares_queries:
                turning = block_turning(model, block)
                planned[place], findings.losses[place], findings.neighbour_losses[place] = grid_plan(
                    block, statistics, grouping, target, turning, seed
                )
                role = merged_role(planned[place])
                if role == "query":
                    findings.similarities[place] = query_similarity(statistics)
                findings.groups[place] = planned[place].groups(role)
            elif grouping.startswith("evolution"):
                pass  # looks at all layers together, below
            elif request.kv_budget is not None:
                curves.append(
                    {
                        count: search_groups(statistics, grouping, count, seed)
                        for count in divisors(statistics.units)
                    }
                )
            else:
                count = target.num_key_heads
                found = search_groups(statistics, grouping, count, seed)
                planned[place] = block_plan(block, found.groups)
                findings.take(place, found)
                if compare:
                    alone = None if measured is None else block_statistics(model, block, reader, None)
                    findings.compare(place, compare_groupings(statistics, alone, grouping, found, seed))
            advance(1)
    if curves:
        losses = [{count: found.loss for count, found in curve.items()} for curve in curves]
        numbers = allocate(losses, budget_heads(model, request))
        assert numbers is not None
        for block, curve, number in zip(chosen, curves, numbers, strict=True):
            place = block.attention.kind, block.layer
            planned[place] = block_plan(block, curve[number].groups)
            findings.take(place, curve[number])
    elif grouping.startswith("evolution"):
        front = evolve(
            [findings.similarities[block.attention.kind, block.layer] for block in chosen],
            equal=grouping == "evolution-ec",
            seed=request.seed,
        )
        budget = sum(targets[block.attention.kind, block.layer].num_key_heads for block in chosen)
        if request.kv_budget is not None:
            budget = budget_heads(model, request)
        for block, groups in zip(chosen, front.within(budget), strict=True):
            place = block.attention.kind, block.layer
            planned[place], findings.groups[place] = block_plan(block, groups), groups
        findings = replace(findings, front=front)
        weigh(model, chosen, calibrated, findings)
    blocks = tuple(planned.get((block.kind, block.layer), block) for block in plan.blocks)
    return replace(plan, blocks=blocks), findings


def complete_plan(
    located: Located, model: SourceModel, plan: Plan, stages: Stages = no_stages
) -> tuple[Plan, CalibratedModel | None]:
    """A plan that was read from a file, with its data, and with rules where ``auto`` has none yet."""
    if plan.calibration is None:
        return plan, None
    calibrated = CalibratedModel(located, model, plan.calibration, stages)
    if plan.wants_rules:
        plan = choose_plan_rules(model, plan, calibrated, stages)
    return plan, calibrated


def choose_plan_rules(model: SourceModel, plan: Plan, calibrated: CalibratedModel, stages: Stages) -> Plan:
    """The plan with the rule for each group that errs least on held-out data."""
    import torch

    from gqkva_convert.refinement.fitted import BlockLaboratory, merged_places

    places = merged_places(plan)
    advance = stages("comparing merge rules", len(places))
    planned: dict[Place, BlockPlan] = {}
    with model.checkpoint.reader() as reader:
        for block, block_plan_ in zip(model.blocks, plan.blocks, strict=True):
            place = block_plan_.kind, block_plan_.layer
            if place not in places:
                continue
            laboratory = BlockLaboratory(model, block, block_plan_, calibrated, reader, places)
            with torch.no_grad():
                candidates = {rule: laboratory.merged(rule) for rule in _TRIED}
                target = block_plan_.target
                apart = target.key == target.value and target.num_query_heads == target.num_attention_heads
                rules = choose_rules(candidates, laboratory.original_outputs, laboratory.held, apart)
            values = rules if apart else (rules[0],) * target.num_value_heads
            planned[place] = replace(block_plan_, rules=GroupRules(rules, values))
            advance(1)
    blocks: Sequence[BlockPlan] = [planned.get((b.kind, b.layer), b) for b in plan.blocks]
    return replace(plan, blocks=tuple(blocks))
