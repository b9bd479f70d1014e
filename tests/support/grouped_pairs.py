"""A grouped model of any family and variant, and the stock model that computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gqkva_convert.conversion.excerpt import reversed_plan, write_excerpt
from gqkva_convert.heads import HeadLayout, neighbour_order, random_order, without_reordering
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.source.model import SourceModel, open_model
from gqkva_convert.steps.make import make_steps

VARIANTS = ("MHA", "MQA", "GQA", "random GQA", "unequal", "MKVA", "GKVA", "GQKVA", "mixed", "apart")


def layout(variant: str, heads: int, head_dim: int, layer: int = 0) -> HeadLayout:
    """Return a layout of a variant for an even number of heads."""
    if variant == "mixed":
        variant = ("GQKVA", "unequal", "MQA")[layer % 3]
    everything = tuple(range(heads))
    if variant == "apart":  # keys and values grouped differently, as many of each
        return HeadLayout(
            everything,
            tuple(h // (heads // 2) for h in everything),
            tuple(h % 2 for h in everything),
            head_dim,
        )
    return {
        "MHA": HeadLayout.mha(heads, head_dim),
        "MQA": HeadLayout.gqa(heads, 1, head_dim),
        "GQA": HeadLayout.gqa(heads, 2, head_dim),
        "random GQA": HeadLayout.gqa(heads, 2, head_dim),
        "unequal": HeadLayout.unequal([1, 2, heads - 3], head_dim),
        "MKVA": HeadLayout.gkva(heads, 1, head_dim),
        "GKVA": HeadLayout.gkva(heads, heads // 2, head_dim),
        "GQKVA": HeadLayout.gqkva(2, heads // 2, head_dim),
    }[variant]


def plan_of(model: SourceModel, variant: str) -> Plan:
    """Return the plan that gives every block of a model the variant's layout."""
    blocks = []
    for block in model.blocks:
        kind, number, source = block.attention.kind, block.layer, block.layout
        target = layout(variant, source.num_attention_heads, source.head_dim, number)
        order = neighbour_order(source)
        if variant == "random GQA":
            order = random_order(source, target, f"2/{kind}/{number}")
            if block.attention.head_bias is not None:
                target, order = without_reordering(order, target), neighbour_order(source)
        blocks.append(BlockPlan(kind, number, source, target, order))
    return Plan(variant, "neighbour", "mean", 0, None, tuple(blocks))


def write_pair(source: Path, variant: str, folder: Path) -> tuple[Path, Path]:
    """Write a conversion of ``source`` and the stock checkpoint with its heads copied out again."""
    model = open_model(source)
    plan = plan_of(model, variant)
    layers = range(1 + max(block.layer for block in model.blocks))
    grouped, stock = folder / "grouped", folder / "stock"
    write_excerpt(model, plan, make_steps(model, plan), layers, grouped)
    write_expanded(grouped, plan, stock)
    return grouped, stock


def write_expanded(grouped: Path, plan: Plan, stock: Path) -> None:
    """Write the stock checkpoint of a grouped one that ``plan`` made: a linear map of its weights."""
    model, back = open_model(grouped), reversed_plan(plan)
    layers = range(1 + max(block.layer for block in model.blocks))
    write_excerpt(model, back, make_steps(model, back), layers, stock)


def load_pair(source: Path, variant: str, folder: Path) -> tuple[Any, Any]:
    """Load the models of `write_pair`, in float32 and eval mode."""
    grouped, stock = write_pair(source, variant, folder)
    fallback = open_model(source).family.architecture
    return load_model(grouped, fallback), load_model(stock, fallback)
