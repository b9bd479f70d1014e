"""Grids of heads compared by what a short fit makes of them, where a long fit will follow.

What the closed form loses of a grid is a fair guess at what a fit will leave, no more: on the built-in model
the two rank grids alike in some layers and not at all in others.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.heads import HeadLayout
from gqkva_convert.plans.plan import BlockPlan, GroupRules, Plan
from gqkva_convert.progress import Stages
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.source.model import Block, SourceModel

if TYPE_CHECKING:
    from gqkva_convert.refinement.fitted import BlockLaboratory

Order = tuple[int, ...]
# Grids that are tried in each block; the second half differs from the best so far by two heads.
TRIALS = 16
# Sequences a trial learns from and is compared on, and its steps.
_LEARNED, _HELD, _STEPS, _POSITIONS = 128, 32, 60, 1024


def choose_grids(model: SourceModel, plan: Plan, calibrated: CalibratedModel, stages: Stages) -> Plan:
    """The plan with the grid for each block whose queries are shared that errs least after a short fit."""
    from gqkva_convert.refinement.fitted import merged_places

    places = merged_places(plan)
    chosen = [
        place
        for block, place in ((block, (block.kind, block.layer)) for block in plan.blocks)
        if place in places and block.target.num_query_heads < block.target.num_attention_heads
    ]
    advance = stages("trying grids of heads", len(chosen))
    planned: dict[tuple[str, int], BlockPlan] = {}
    with model.checkpoint.reader() as reader:
        for block, block_plan in zip(model.blocks, plan.blocks, strict=True):
            place = block_plan.kind, block_plan.layer
            if place in chosen and block.attention.head_bias is None:
                seed = f"{plan.seed}/{place[0]}/{place[1]}"
                planned[place] = _best_grid(model, block, block_plan, calibrated, reader, places, seed)
            if place in chosen:
                advance(1)
    return replace(plan, blocks=tuple(planned.get((b.kind, b.layer), b) for b in plan.blocks))


def _best_grid(
    model: SourceModel,
    block: Block,
    plan: BlockPlan,
    calibrated: CalibratedModel,
    reader: TensorReader,
    places: set[tuple[str, int]],
    seed: str,
) -> BlockPlan:
    from gqkva_convert.refinement.fitted import BlockLaboratory

    heads = tuple(range(plan.target.num_attention_heads))
    proposal = tuple(head for head in plan.order if head is not None)
    shuffle = random.Random(seed)
    errors: dict[frozenset[frozenset[int]], float] = {}
    best, best_error = proposal, float("inf")
    for trial in range(TRIALS):
        if trial < 2:
            order = (proposal, heads)[trial]
        elif trial < TRIALS // 2:
            order = tuple(shuffle.sample(heads, len(heads)))
        else:
            one, other = shuffle.sample(heads, 2)
            swapped = list(best)
            swapped[one], swapped[other] = swapped[other], swapped[one]
            order = tuple(swapped)
        name = _grid(order, plan.target)
        if name in errors:
            continue
        rules = GroupRules.same("closed-form-weights", plan.target)
        tried = replace(plan, order=order, rules=rules)
        errors[name] = _error(BlockLaboratory(model, block, tried, calibrated, reader, places))
        if errors[name] < best_error:
            best, best_error = order, errors[name]
    return replace(plan, order=best)


def _grid(order: Order, target: HeadLayout) -> frozenset[frozenset[int]]:
    """Which heads share queries and which share keys, whatever rows and columns are called."""
    groups: dict[tuple[str, int], set[int]] = {}
    for place, head in enumerate(order):
        groups.setdefault(("query", target.query[place]), set()).add(head)
        groups.setdefault(("key", target.key[place]), set()).add(head)
    return frozenset(frozenset(group) for group in groups.values())


def _error(laboratory: BlockLaboratory) -> float:
    """What a short fit leaves on held-out inputs."""
    from gqkva_convert.refinement.block_data import BlockData
    from gqkva_convert.refinement.layerwise import FitSettings, fit_layer

    learned, held = (
        BlockData(laboratory.network, list(islice(laboratory.sequences(numbers), count)), laboratory.output)
        for numbers, count in ((laboratory.learned_numbers, _LEARNED), (laboratory.held_numbers, _HELD))
    )
    settings = FitSettings(
        steps=_STEPS,
        epochs=0.0,
        positions=_POSITIONS,
        check_every=_STEPS,
        warmup_steps=_STEPS // 10,
        trial_steps=0,
    )
    return held.error(fit_layer(laboratory.merged(), learned, held, settings))
