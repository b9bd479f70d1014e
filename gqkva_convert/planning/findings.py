"""What planning looked at: how alike heads are, which become one, what the closed form loses of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gqkva_convert.grouping.costs import query_similarity
from gqkva_convert.grouping.evolution import Front
from gqkva_convert.grouping.search import neighbour_groups
from gqkva_convert.planning.groups import (
    Grouped,
    block_statistics,
    compare_groupings,
    similarity,
    total_loss,
    weigh_grid,
)
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.source.model import Block, SourceModel
from gqkva_convert.source.rotary import block_turning

if TYPE_CHECKING:
    from gqkva_convert.grouping.statistics import Array

Place = tuple[str, int]


@dataclass(frozen=True)
class Findings:
    """What planning looked at, for tables and pictures.

    Attributes:
        similarities: Inner products of each block's units, by kind and layer.
        groups: Groups chosen.
        losses: What the closed form loses of them, relative to each block.
        neighbour_losses: The same of neighbour groups of as many heads.
        method_losses: The same by grouping of all that were compared, the chosen one included.
        front: Trade-offs found by ``evolution``.
    """

    similarities: dict[Place, Array] = field(default_factory=dict)
    groups: dict[Place, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    losses: dict[Place, float] = field(default_factory=dict)
    neighbour_losses: dict[Place, float] = field(default_factory=dict)
    method_losses: dict[str, dict[Place, float]] = field(default_factory=dict)
    front: Front | None = None

    def take(self, place: Place, found: Grouped) -> None:
        """Note the groups of a block and what is lost of them."""
        self.groups[place], self.losses[place] = found.groups, found.loss
        self.neighbour_losses[place] = found.neighbour_loss

    def compare(self, place: Place, losses: dict[str, float]) -> None:
        """Note what is lost of a block by grouping."""
        for name, loss in losses.items():
            self.method_losses.setdefault(name, {})[place] = loss

    def forget_grids(self, before: Plan, after: Plan) -> None:
        """Take in grids that were chosen by trying them; what the closed form loses of those is not known."""
        for old, block in zip(before.blocks, after.blocks, strict=True):
            if block.order != old.order:
                place = block.kind, block.layer
                self.groups[place] = block.groups(merged_role(block))
                for losses in (self.losses, self.neighbour_losses, *self.method_losses.values()):
                    losses.pop(place, None)


def merged_role(block: BlockPlan) -> str:
    """Whose groups a picture of a grid shows: keys', or queries' where those alone are shared."""
    return "key" if block.target.num_key_heads < block.target.num_attention_heads else "query"


def weigh(
    model: SourceModel,
    chosen: Sequence[Block],
    calibrated: CalibratedModel | None,
    findings: Findings,
) -> None:
    """Note what the closed form loses of groups that were found by other measures."""
    with model.checkpoint.reader() as reader:
        for block in chosen:
            place = block.attention.kind, block.layer
            measured = calibrated.measured(*place) if calibrated else None
            statistics = block_statistics(model, block, reader, measured)
            groups = findings.groups[place]
            neighbours = neighbour_groups(statistics.units, len(groups))
            losses = total_loss(statistics, groups), total_loss(statistics, neighbours)
            findings.take(place, Grouped(groups, *losses))


def look_at(model: SourceModel, plan: Plan, calibrated: CalibratedModel | None, compare: bool) -> Findings:
    """What the closed form loses of groups that nobody searched for.

    Args:
        model: The source.
        plan: The plan.
        calibrated: The source with its data, where there are any.
        compare: Look at what searched groups would lose too.

    Returns:
        Nothing of a block that stays as it is, or whose keys and values are grouped apart.
    """
    findings = Findings()
    with model.checkpoint.reader() as reader:
        for block, planned in zip(model.blocks, plan.blocks, strict=True):
            source, target = planned.source, planned.target
            if source == target or source.key != source.value or target.key != target.value:
                continue
            place = planned.kind, planned.layer
            measured = calibrated.measured(*place) if calibrated else None
            shares_queries = target.num_query_heads < target.num_attention_heads
            statistics = block_statistics(model, block, reader, measured, shares_queries)
            findings.similarities[place] = similarity(statistics, "activations")
            if shares_queries:
                role = merged_role(planned)
                if role == "query":
                    findings.similarities[place] = query_similarity(statistics)
                findings.take(place, weigh_grid(statistics, planned, role, block_turning(model, block)))
                continue
            groups = planned.groups("key")
            neighbours = total_loss(statistics, neighbour_groups(statistics.units, len(groups)))
            found = Grouped(groups, total_loss(statistics, groups), neighbours)
            findings.take(place, found)
            if compare:
                alone = None if measured is None else block_statistics(model, block, reader, None)
                seed = f"{plan.seed}/{place[0]}/{place[1]}"
                findings.compare(place, compare_groupings(statistics, alone, plan.grouping, found, seed))
    return findings
