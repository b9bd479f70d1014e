"""Searches for the groups of a model's blocks: each block alone, within a budget, or all layers together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gqkva_convert.grouping.allocation import allocate
from gqkva_convert.grouping.evolution import Front, evolve
from gqkva_convert.heads import GROUPINGS, Place, divisors
from gqkva_convert.planning.findings import BlockFindings, BlockSurvey, Findings, merged_role, weigh_groups
from gqkva_convert.planning.groups import BlockGroups, block_plan, grid_plan, search_groups, similarity
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.progress import Progress, Stages
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.source.model import Block, SourceModel
from gqkva_convert.source.stored_block import StoredBlock, stored_block

# A block as the source stores it, and its plan in neighbour order.
Planned = tuple[StoredBlock, BlockPlan]
Chosen = dict[Place, tuple[BlockPlan, BlockFindings]]


def search_plan(
    model: SourceModel,
    plan: Plan,
    chosen: Sequence[Block],
    budget: int | None,
    calibrated: CalibratedModel | None,
    stages: Stages,
    compare: bool,
) -> tuple[Plan, Findings]:
    """Return a plan with groups that were searched for, and what the search found.

    Args:
        model: The source.
        plan: Its plan, groups of neighbours yet.
        chosen: Blocks to convert.
        budget: Key/value heads of all of them together; None for those of the plan.
        calibrated: The source with its data, where there are any.
        stages: Shows progress.
        compare: Also search other groupings.
    """
    plans = {block.place: block for block in plan.blocks}
    blocks = [(stored_block(model, block), plans[block.place]) for block in chosen]
    advance = stages(f"searching groups ({plan.grouping})", len(blocks))
    front = None
    with model.checkpoint.reader() as reader:
        survey = BlockSurvey(plan, calibrated, reader, compare)
        if GROUPINGS[plan.grouping].spans_layers:
            heads = sum(planned.target.num_key_heads for _, planned in blocks) if budget is None else budget
            found, front = _over_layers(survey, blocks, heads, advance)
        elif budget is not None:
            found = _within_budget(survey, blocks, budget, advance)
        else:
            found = _each_alone(survey, blocks, advance)
    after = tuple(found[block.place][0] if block.place in found else block for block in plan.blocks)
    findings = Findings({place: findings for place, (_, findings) in found.items()}, front)
    return replace(plan, blocks=after), findings


def _each_alone(survey: BlockSurvey, blocks: Sequence[Planned], advance: Progress) -> Chosen:
    """Return the best groups of each block, of the number of heads that is planned for it."""
    chosen: Chosen = {}
    grouping = survey.plan.grouping
    for block, planned in blocks:
        statistics = survey.statistics(block, queries=planned.shares_queries)
        if planned.shares_queries:
            grid, loss, neighbour_loss = grid_plan(
                block, statistics, grouping, planned.target, survey.seed(block)
            )
            found = BlockGroups(grid.groups(merged_role(grid)), loss, neighbour_loss)
            chosen[block.place] = grid, survey.grid_findings(grid, statistics, found, by=grouping)
        else:
            found = search_groups(statistics, grouping, planned.target.num_key_heads, survey.seed(block))
            findings = survey.findings(block, statistics, found, by=grouping)
            chosen[block.place] = block_plan(block, found.groups), findings
        advance(1)
    return chosen


def _within_budget(survey: BlockSurvey, blocks: Sequence[Planned], budget: int, advance: Progress) -> Chosen:
    """Return numbers of heads for the blocks that lose least together, and their groups."""
    curves, similarities = [], []
    grouping = survey.plan.grouping
    for block, _ in blocks:
        statistics, seed = survey.statistics(block), survey.seed(block)
        similarities.append(similarity(statistics, grouping))
        counts = divisors(statistics.units)
        curves.append({count: search_groups(statistics, grouping, count, seed) for count in counts})
        advance(1)
    losses = [{count: found.loss for count, found in curve.items()} for curve in curves]
    numbers = allocate(losses, budget)
    assert numbers is not None
    chosen: Chosen = {}
    for (block, _), shown, curve, number in zip(blocks, similarities, curves, numbers, strict=True):
        found = curve[number]
        findings = BlockFindings(shown, found.groups, found.loss, found.neighbour_loss)
        chosen[block.place] = block_plan(block, found.groups), findings
    return chosen


def _over_layers(
    survey: BlockSurvey, blocks: Sequence[Planned], heads: int, advance: Progress
) -> tuple[Chosen, Front]:
    """Return groups that `evolve` found for all layers together, and the trade-offs beside them."""
    grouping, similarities = survey.plan.grouping, []
    for block, _ in blocks:
        similarities.append(similarity(survey.statistics(block), grouping))
        advance(1)
    front = evolve(similarities, equal=GROUPINGS[grouping].is_equal, seed=survey.plan.seed)
    chosen: Chosen = {}
    for (block, _), shown, groups in zip(blocks, similarities, front.within(heads), strict=True):
        found = weigh_groups(survey.statistics(block), groups)
        findings = BlockFindings(shown, groups, found.loss, found.neighbour_loss)
        chosen[block.place] = block_plan(block, groups), findings
    return chosen, front
