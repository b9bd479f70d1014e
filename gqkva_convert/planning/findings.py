"""Results of planning by block, for tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.grouping.costs import query_similarity
from gqkva_convert.grouping.evolution import Front
from gqkva_convert.grouping.search import Groups, neighbour_groups
from gqkva_convert.grouping.statistics import Array, BlockStatistics
from gqkva_convert.heads import Place, place_seed
from gqkva_convert.planning.groups import (
    BlockGroups,
    block_statistics,
    compare_groupings,
    similarity,
    total_loss,
    weigh_grid,
)
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.source.model import SourceModel
from gqkva_convert.source.stored_block import StoredBlock, stored_block


@dataclass(frozen=True)
class BlockFindings:
    """Results of planning for one block.

    Attributes:
        similarity: Inner products of its units, ``(units, units)``.
        groups: Groups chosen.
        loss: The closed form's loss of them, relative to the block; None if unknown.
        neighbour_loss: The same of neighbour groups of as many heads.
        method_losses: The same by grouping of all that were compared, the chosen one included.
    """

    similarity: Array
    groups: Groups
    loss: float | None = None
    neighbour_loss: float | None = None
    method_losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """Results of planning for a model.

    Attributes:
        blocks: Results by kind and layer.
        front: Trade-offs found by ``evolution``.
    """

    blocks: Mapping[Place, BlockFindings]
    front: Front | None = None

    def with_grids(self, before: Plan, after: Plan) -> Findings:
        """Return the findings with the grids of another plan, whose closed-form losses are unknown."""
        changed = {
            block.place: BlockFindings(self.blocks[block.place].similarity, block.groups(merged_role(block)))
            for old, block in zip(before.blocks, after.blocks, strict=True)
            if block.order != old.order
        }
        return replace(self, blocks={**self.blocks, **changed})


def merged_role(block: BlockPlan) -> str:
    """Return the role whose groups a plot of a grid shows: queries if those alone are shared, else keys."""
    return "key" if block.target.num_key_heads < block.target.num_attention_heads else "query"


@dataclass(frozen=True)
class BlockSurvey:
    """Statistics of the source's blocks, as a search reads them.

    Attributes:
        plan: Grouping and seed.
        calibrated: The source with its data, if any.
        reader: Reader of the source.
        compare: Whether other groupings are searched too.
    """

    plan: Plan
    calibrated: CalibratedModel | None
    reader: TensorReader
    compare: bool

    def statistics(self, block: StoredBlock, *, queries: bool = False) -> BlockStatistics:
        """Return inner products of a block's heads, measured on data unless weights alone are asked for."""
        measured = None
        if self.calibrated is not None and self._is_measured(block.place):
            measured = self.calibrated.measured(block.place)
        return block_statistics(block, self.reader, measured, queries)

    def _is_measured(self, place: Place) -> bool:
        calibrated = self.calibrated
        return calibrated is not None and self.plan.grouping != "weights" and place in calibrated.moments

    def seed(self, block: StoredBlock) -> str:
        """Return the seed of a block's searches."""
        return place_seed(self.plan.seed, block.place)

    def findings(
        self, block: StoredBlock, statistics: BlockStatistics, found: BlockGroups, *, by: str
    ) -> BlockFindings:
        """Return what is known of a block's groups.

        Args:
            block: The block.
            statistics: Result of `statistics`.
            found: The groups chosen.
            by: Grouping whose similarity is shown.
        """
        losses: dict[str, float] = {}
        if self.compare:
            alone = block_statistics(block, self.reader, None) if self._is_measured(block.place) else None
            losses = compare_groupings(statistics, alone, self.plan.grouping, found, self.seed(block))
        shown = similarity(statistics, by)
        return BlockFindings(shown, found.groups, found.loss, found.neighbour_loss, losses)

    def grid_findings(
        self, planned: BlockPlan, statistics: BlockStatistics, found: BlockGroups, *, by: str
    ) -> BlockFindings:
        """Return what is known of a block whose queries are shared; arguments as for `findings`."""
        is_row = merged_role(planned) == "query"
        shown = query_similarity(statistics) if is_row else similarity(statistics, by)
        return BlockFindings(shown, found.groups, found.loss, found.neighbour_loss)


def weigh_groups(statistics: BlockStatistics, groups: Groups) -> BlockGroups:
    """Return groups that were found by other measures with the closed form's loss of them."""
    neighbours = neighbour_groups(statistics.units, len(groups))
    return BlockGroups(groups, total_loss(statistics, groups), total_loss(statistics, neighbours))


def look_at(model: SourceModel, plan: Plan, calibrated: CalibratedModel | None, compare: bool) -> Findings:
    """Compute the closed form's loss of groups that no search chose.

    Args:
        model: The source.
        plan: The plan.
        calibrated: The source with its data, where there are any.
        compare: Also search other groupings.

    Returns:
        Findings without blocks that are unchanged, or whose keys and values are grouped apart.
    """
    blocks = {}
    with model.checkpoint.reader() as reader:
        survey = BlockSurvey(plan, calibrated, reader, compare)
        for block, planned in zip(model.blocks, plan.blocks, strict=True):
            source, target = planned.source, planned.target
            if source == target or source.key != source.value or target.key != target.value:
                continue
            stored = stored_block(model, block)
            statistics = survey.statistics(stored, queries=planned.shares_queries)
            if planned.shares_queries:
                found = weigh_grid(statistics, planned, merged_role(planned), stored.planes.turning())
                blocks[block.place] = survey.grid_findings(planned, statistics, found, by="activations")
            else:
                found = weigh_groups(statistics, planned.groups("key"))
                blocks[block.place] = survey.findings(stored, statistics, found, by="activations")
    return Findings(blocks)
