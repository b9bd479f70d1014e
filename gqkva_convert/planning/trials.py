"""Grids of heads compared by their error after a short fit, where a long fit will follow.

The closed form's loss of a grid only estimates its error after a fit: on the built-in model the two rank
grids alike in some layers and not at all in others.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from gqkva_convert.heads import HeadLayout, place_seed
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.progress import Stages
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.source.model import SourceModel
from gqkva_convert.steps.blocks import block_merges

if TYPE_CHECKING:
    from gqkva_convert.refinement.block_data import BlockData
    from gqkva_convert.refinement.fitted import BlockLaboratory

Order = tuple[int, ...]
# Grids that are tried in each block; the second half differs from the best so far by two heads.
TRIALS = 16
# Sequences a trial learns from and is compared on, and its steps.
_LEARNED, _HELD, _STEPS, _POSITIONS = 128, 32, 60, 1024


def choose_grids(model: SourceModel, plan: Plan, calibrated: CalibratedModel, stages: Stages) -> Plan:
    """Return the plan with the grid that errs least after a short fit in each block that shares queries."""
    from gqkva_convert.refinement.fitted import BlockLaboratory

    merges = block_merges(model, plan)
    chosen = [merge for merge in merges.values() if merge.plan.shares_queries]
    advance = stages("trying grids of heads", len(chosen))
    planned = {block.place: block for block in plan.blocks}
    with model.checkpoint.reader() as reader:
        for merge in chosen:
            place = merge.block.place
            if not merge.block.keeps_order:
                laboratory = BlockLaboratory(merge, calibrated, reader, set(merges))
                planned[place] = _best_grid(laboratory, place_seed(plan.seed, place))
            advance(1)
    return replace(plan, blocks=tuple(planned.values()))


def _best_grid(laboratory: BlockLaboratory, seed: str) -> BlockPlan:
    plan = laboratory.merge.plan
    heads = tuple(range(plan.target.num_attention_heads))
    proposal = tuple(head for head in plan.order if head is not None)
    learned = laboratory.data(laboratory.learned_numbers, _LEARNED)
    held = laboratory.data(laboratory.held_numbers, _HELD)
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
        errors[name] = _error(laboratory, replace(plan, order=order), learned, held)
        if errors[name] < best_error:
            best, best_error = order, errors[name]
    return replace(plan, order=best)


def _grid(order: Order, target: HeadLayout) -> frozenset[frozenset[int]]:
    """Return which heads share queries and which share keys, regardless of the order of rows and columns."""
    groups: dict[tuple[str, int], set[int]] = {}
    for place, head in enumerate(order):
        groups.setdefault(("query", target.query[place]), set()).add(head)
        groups.setdefault(("key", target.key[place]), set()).add(head)
    return frozenset(frozenset(group) for group in groups.values())


def _error(laboratory: BlockLaboratory, plan: BlockPlan, learned: BlockData, held: BlockData) -> float:
    """Return the held-out error after a short fit."""
    from gqkva_convert.refinement.layerwise import FitSettings, fit_layer

    network = laboratory.network.regrouped(plan)
    learned, held = learned.regrouped(network), held.regrouped(network)
    settings = FitSettings(
        steps=_STEPS,
        epochs=0.0,
        positions=_POSITIONS,
        check_every=_STEPS,
        warmup_steps=_STEPS // 10,
        trial_steps=0,
    )
    return held.error(fit_layer(laboratory.merged("closed-form-weights", plan), learned, held, settings))
