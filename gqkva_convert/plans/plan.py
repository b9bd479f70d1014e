"""Everything a conversion will do to the heads, as data: layouts, groups and merge rules, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, StrictInt, StrictStr, TypeAdapter, ValidationError

from gqkva_convert.architectures import Family
from gqkva_convert.checkpoint.dtypes import FLOAT_BY_NAME, unknown_dtype
from gqkva_convert.errors import GqkvaError, LayoutError, UsageError, VerificationError, place_of, placed
from gqkva_convert.heads import (
    GROUPINGS,
    HeadLayout,
    Place,
    Variant,
    merged_groups,
    neighbour_order,
    place_seed,
    random_order,
    without_reordering,
)
from gqkva_convert.plans.stored import StoredLayout, StoredOrder, StoredSettings, refusal
from gqkva_convert.records.record import Checked
from gqkva_convert.records.report import Report
from gqkva_convert.source.model import Block, SourceModel
from gqkva_convert.transforms.merge import GROUP_RULES, RULES


@dataclass(frozen=True)
class GroupRules:
    """Merge rules of single groups, where they differ (``--merge auto``).

    Attributes:
        scores: For each stored key head, the rule that it and the queries that read it merge by.
        values: For each stored value head, the rule that it merges by.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    scores: tuple[StrictStr, ...]
    values: tuple[StrictStr, ...]

    def __post_init__(self) -> None:
        for rule in (*self.scores, *self.values):
            if rule not in GROUP_RULES:
                raise UsageError(
                    f"no merge rule {rule!r} for a group; choose one of {', '.join(GROUP_RULES)}"
                )

    @classmethod
    def same(cls, rule: str, target: HeadLayout) -> GroupRules:
        """Return rules that use one rule for every group."""
        return cls((rule,) * target.num_key_heads, (rule,) * target.num_value_heads)


# Refinements on calibration data, in the order they run.
REFINEMENTS = ("layerwise", "output")


@dataclass(frozen=True)
class BlockPlan:
    """The plan for the heads of one attention block.

    Attributes:
        kind: Kind of attention, as the family's table names it.
        order: Source attention head that each attention head of the result was; None for one that is added
            and whose output counts for nothing.
        rules: Merge rules of its groups where they are not all the plan's.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: StrictStr
    layer: StrictInt
    source: StoredLayout
    target: StoredLayout
    order: StoredOrder
    rules: Annotated[GroupRules, Checked] | None = None

    def __post_init__(self) -> None:
        for part, said in self._faults():
            raise placed(LayoutError(f"layer {self.layer}, {self.kind}: {said}"), part)

    def _faults(self) -> Iterator[tuple[str, str]]:
        """Give each part that cannot be, and why."""
        source, target, rules = self.source, self.target, self.rules
        if any(head is not None and type(head) is not int for head in self.order):
            yield "order", "an order is made of whole numbers"
        if target.head_dim != source.head_dim:
            yield "target", f"a target of {target.head_dim} features a head, the source has {source.head_dim}"
        kept = [head for head in self.order if head is not None]
        if len(set(kept)) < len(kept) or not set(kept) <= set(range(source.num_attention_heads)):
            yield "order", f"the order is not one of its {source.num_attention_heads} heads"
        if len(self.order) != target.num_attention_heads:
            said = f"an order of {len(self.order)} heads for {target.num_attention_heads} attention heads"
            yield "order", said
        if rules is None:
            return
        if self.shares_queries and len(set(rules.scores)) > 1:
            found = ", ".join(sorted(set(rules.scores)))
            yield "rules", f"with shared queries all key heads merge by one rule, found {found}"
        counts, given = (target.num_key_heads, target.num_value_heads), (len(rules.scores), len(rules.values))
        if given != counts:
            said = f"rules for {given[0]} key and {given[1]} value heads"
            yield "rules", f"{said}, the layout has {counts[0]} and {counts[1]}"

    @classmethod
    def unchanged(cls, place: Place, layout: HeadLayout) -> BlockPlan:
        """Return the plan that leaves a block's heads as they are."""
        return cls(*place, layout, layout, tuple(range(layout.num_attention_heads)))

    @property
    def place(self) -> Place:
        return self.kind, self.layer

    @property
    def shares_queries(self) -> bool:
        """Return whether several attention heads of the result read one query head."""
        return self.target.num_query_heads < self.target.num_attention_heads

    def groups(self, role: str) -> tuple[tuple[int, ...], ...]:
        """Return the source's stored heads behind each stored head of the result; see `merged_groups`."""
        return merged_groups(self.order, self.source.stored_heads(role), self.target.stored_heads(role))

    def reversed(self) -> BlockPlan:
        """Return the plan that expands the merged heads to the source's layout and order."""
        places = tuple(self.order.index(head) for head in range(self.source.num_attention_heads))
        return BlockPlan(self.kind, self.layer, self.target, self.source, places)


@dataclass(frozen=True)
class Plan:
    """A whole conversion.

    Attributes:
        variant: The variant's short name, such as ``gqa-8``.
        grouping: Name of the method that chose the groups.
        seed: Seed of everything drawn at random.
        dtype: Hugging Face name of the dtype wanted, or None to keep each tensor's own.
        architecture: Stock model type to write where it is not the source's own.
        calibration: Data that groups, rules or merged heads were found with.
        refine: Refinements on that data, in order.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    variant: StrictStr
    grouping: StrictStr
    merge: StrictStr
    seed: StrictInt
    dtype: StrictStr | None
    blocks: tuple[Annotated[BlockPlan, Checked], ...]
    architecture: StrictStr | None = None
    calibration: StoredSettings | None = None
    refine: tuple[StrictStr, ...] = ()

    def __post_init__(self) -> None:
        for part, said in self._faults():
            raise placed(UsageError(said), part)

    def _faults(self) -> Iterator[tuple[str, str]]:
        """Give each part that cannot be, and why."""
        if self.merge not in RULES:
            yield "merge", f"no merge rule {self.merge!r}; choose one of {', '.join(RULES)}"
        if self.grouping not in GROUPINGS:
            yield "grouping", f"no grouping {self.grouping!r}; choose one of {', '.join(GROUPINGS)}"
        if type(self.seed) is not int or self.seed < 0:
            yield "seed", f"a seed is a whole number from 0 on, found {self.seed!r}"
        if self.refine != tuple(name for name in REFINEMENTS if name in self.refine):
            known = ", ".join(REFINEMENTS)
            yield "refine", f"refine lists, in this order, any of {known}; found {self.refine!r}"
        if any(block.rules for block in self.blocks) and not RULES[self.merge].is_joint:
            said = f"rules of groups go with merge auto or another joint rule, not {self.merge}"
            yield "merge", said
        if self.refine and not RULES[self.merge].is_joint:
            said = f"--refine goes on from a merge of whole blocks, which --merge {self.merge} is not"
            yield "refine", said
        if self.dtype is not None and self.dtype not in FLOAT_BY_NAME:
            yield "dtype", unknown_dtype(self.dtype)

    @property
    def wants_rules(self) -> bool:
        """Return whether rules of groups remain to be compared."""
        merging = (block for block in self.blocks if block.target != block.source)
        return self.merge == "auto" and any(block.rules is None for block in merging)

    @property
    def looks_at_data(self) -> bool:
        """Return whether the conversion needs calibration data."""
        return bool(self.refine) or self.wants_rules

    def is_native(self, family: Family) -> bool:
        """Return whether the family's stock architecture can hold the result."""
        for attention in family.attention:
            targets = {block.target for block in self.blocks if block.kind == attention.kind}
            if len(targets) > 1 or not all(target.is_stock_gqa for target in targets):
                return False
            if attention.num_key_value_heads is None and any(target.name != "MHA" for target in targets):
                return False
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON data; `from_dict` reads it back."""
        data = _schema().dump_python(self, mode="json")
        blocks = [_without_absent_rules(block) for block in data.pop("blocks")]
        return {**data, "blocks": blocks}

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """Read what `to_dict` wrote.

        Raises:
            UsageError: It is no plan; names the place.
            LayoutError: Its heads cannot be; names the place.
        """
        try:
            return _schema().validate_python(data)
        except ValidationError as error:
            raise refusal(error) from error

    @classmethod
    def from_report(cls, report: Report, model: SourceModel | None = None) -> Plan:
        """Read the plan of a report.

        Args:
            report: The report.
            model: The converted model, where the plan must be of its blocks.

        Raises:
            VerificationError: It is no plan, or one of other blocks; names the field.
        """
        try:
            plan = cls.from_dict(report.plan)
        except GqkvaError as error:
            field = ".".join(map(str, ("plan", *place_of(error))))
            raise VerificationError(f"the report is damaged: {field}: {error}") from error
        if model is not None:
            planned = [(block.place, block.target) for block in plan.blocks]
            if planned != [(block.place, block.layout) for block in model.blocks]:
                raise VerificationError(
                    f"the report is damaged: plan.blocks are not those of {model.checkpoint.folder}"
                )
        return plan


@cache
def _schema() -> TypeAdapter[Plan]:
    return TypeAdapter(Annotated[Plan, Checked])


def _without_absent_rules(block: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if (key, value) != ("rules", None)}


def make_plan(
    model: SourceModel,
    variant: Variant,
    *,
    blocks: str | None = None,
    grouping: str = "neighbour",
    merge: str = "closed-form",
    seed: int = 0,
    dtype: str | None = None,
) -> Plan:
    """Choose the layout and the groups of every attention block; reads no weights.

    ``blocks`` names kinds of attention to convert, separated by commas; the others stay as they are, and None
    converts all. ``decoder`` means all of a decoder, cross-attention too (as Ainslie et al., 2023, arXiv
    2305.13245, convert T5); ``cross`` cross-attention alone.

    Raises:
        LayoutError: The numbers of heads cannot be.
        UsageError: There is no such kind of attention, grouping or rule.
    """
    planned = plan_blocks(model, variant, blocks, grouping, seed)
    return Plan(variant.slug, grouping, merge, seed, dtype, planned)


def plan_blocks(
    model: SourceModel, variant: Variant, kinds: str | None, grouping: str, seed: int
) -> tuple[BlockPlan, ...]:
    """Return the blocks of `make_plan`; groupings that are searched for leave heads in neighbour order."""
    targets = plan_layouts(model.family, model.blocks, variant, kinds)
    return tuple(
        _plan_block(block, target, grouping, seed)
        for block, target in zip(model.blocks, targets, strict=True)
    )


def plan_layouts(
    family: Family, blocks: Sequence[Block], variant: Variant, kinds: str | None
) -> tuple[HeadLayout, ...]:
    """Return the layout of each block, heads in neighbour order; blocks not chosen keep theirs.

    Raises:
        LayoutError: The numbers of heads cannot be.
        UsageError: There is no such kind of attention.
    """
    chosen = chosen_kinds(family, kinds)
    targets = []
    for block in blocks:
        try:
            targets.append(variant.layout(block.layout) if block.attention.kind in chosen else block.layout)
        except LayoutError as error:
            raise LayoutError(f"{block.attention.kind} attention: {error}") from error
    return tuple(targets)


def chosen_kinds(family: Family, blocks: str | None) -> set[str]:
    """Return the kinds of attention that are converted; see `make_plan`."""
    kinds = {attention.kind for attention in family.attention}
    if blocks is None:
        return kinds
    asked = {name.strip() for name in blocks.split(",")}
    if not asked <= kinds:
        raise UsageError(
            f"{family.model_type} has no {', '.join(sorted(asked - kinds)) or 'unnamed'} attention; "
            f"choose of {', '.join(sorted(kinds))}"
        )
    return asked | ({"cross"} & kinds if "decoder" in asked else set())


def _plan_block(block: Block, target: HeadLayout, grouping: str, seed: int) -> BlockPlan:
    source = block.layout
    if grouping == "random" and target != source:
        order = random_order(source, target, place_seed(seed, block.place))
        if block.attention.head_bias is not None:
            target, order = without_reordering(order, target), neighbour_order(source)
    else:
        order = neighbour_order(source)
    return BlockPlan(*block.place, source, target, order)
