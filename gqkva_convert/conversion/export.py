"""The same function as a stock architecture: what `gqkva export` writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from gqkva_convert.architectures import Attention, HeadNorm, Key
from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.conversion.prepare import Conversion, make_draft, plan_shards
from gqkva_convert.errors import NotExpressibleError, UsageError
from gqkva_convert.heads import HeadLayout, Place
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.source.deci import DECI
from gqkva_convert.source.deci_form import require_deci_form
from gqkva_convert.source.model import Block, SourceModel, active_norms, config_number, open_model
from gqkva_convert.source.stock import require_loadable
from gqkva_convert.steps.others import tied_copies
from gqkva_convert.steps.shards import parse_size

Slots = tuple[tuple[int | None, ...], ...]


def prepare_export(
    model: str | Path,
    out: str | Path,
    *,
    architecture: str | Callable[[SourceModel], str | None] | None = None,
    max_shard_size: str | None = None,
) -> Conversion:
    """Plan an export without writing anything; takes the arguments of `gqkva_convert.export`.

    ``architecture`` may also be a function that chooses one when it sees the source.
    """
    if isinstance(architecture, str):
        require_architecture(architecture)
    located = locate(str(model), None)
    source = open_model(located.folder)
    max_shard_bytes = parse_size(max_shard_size) if max_shard_size else None
    chosen = architecture(source) if callable(architecture) else architecture
    plan = export_plan(source) if chosen is None else deci_plan(source)
    wished = ["--architecture", DECI] if plan.architecture == DECI else []
    wished += ["--max-shard-size", max_shard_size] if max_shard_size else []
    command = ("export", located.name, str(out), *wished)
    draft = make_draft(source, plan, tied_copies(source))
    require_loadable(source.checkpoint, source.family)
    return plan_shards(located, source, draft, Path(out), max_shard_bytes, command=command)


def require_architecture(name: str) -> None:
    """Refuse the name of an architecture that is not one of ours.

    Raises:
        UsageError: Names those that are.
    """
    if name != DECI:
        raise UsageError(f"no architecture {name!r} to export to; leave it out or choose {DECI}")


def key_value_counts(model: SourceModel) -> list[int]:
    """Return the number of key/value heads that each block needs."""
    return [len(_readers(block.layout)) for block in model.blocks]


def export_plan(model: SourceModel) -> Plan:
    """Plan the stock layout of every block and the places of its heads.

    Raises:
        NotExpressibleError: No stock architecture of the family can hold the function.
    """
    placed: dict[Place, tuple[HeadLayout, tuple[int | None, ...]]] = {}
    for attention in model.family.attention:
        blocks = [block for block in model.blocks if block.attention is attention]
        if attention.num_key_value_heads is None:
            for block in blocks:
                heads, head_dim = block.layout.num_attention_heads, block.layout.head_dim
                placed[block.place] = HeadLayout.mha(heads, head_dim), tuple(range(heads))
        else:
            placed.update(_placed_in_groups(model, attention, blocks))
    plans = tuple(BlockPlan(*block.place, block.layout, *placed[block.place]) for block in model.blocks)
    return Plan("stock", "neighbour", "mean", 0, None, plans, _architecture(model, plans))


def deci_plan(model: SourceModel) -> Plan:
    """Plan a Llama whose layers keep their own numbers of key/value heads.

    All layers have one number of attention heads there: the smallest that the groups of every layer divide,
    and that leaves room for each layer's largest group.

    Raises:
        NotExpressibleError: The model is not a Llama in all but the number of its heads.
    """
    require_deci_form(model.config, model.family.model_type)
    readers = [_readers(block.layout) for block in model.blocks]
    step = math.lcm(*(len(groups) for groups in readers))
    needed = max(len(groups) * max(map(len, groups)) for groups in readers)
    heads = -(-needed // step) * step
    plans = []
    for block, groups in zip(model.blocks, readers, strict=True):
        target = HeadLayout.gqa(heads, len(groups), block.layout.head_dim)
        size = heads // len(groups)
        order = tuple(head for group in groups for head in (*group, *[None] * (size - len(group))))
        plans.append(BlockPlan(*block.place, block.layout, target, order))
    return Plan("deci", "neighbour", "mean", 0, None, tuple(plans), DECI)


def _architecture(model: SourceModel, plans: tuple[BlockPlan, ...]) -> str | None:
    """Return ``mistral`` for a Llama whose heads do not divide its width; None for the family's own."""
    heads = plans[0].target.num_attention_heads
    is_refused = (
        model.family.model_type == "llama" and config_number(model.config, Key("hidden_size")) % heads != 0
    )
    return "mistral" if is_refused else None


def _can_be_mistral(model: SourceModel) -> bool:
    """Return whether Mistral without a window computes the same as a Llama, with the same tensor names.

    Mistral lacks biases; its question answering stores the base model under another name.
    """
    has_bias = model.config.get("attention_bias") or model.config.get("mlp_bias")
    return not has_bias and model.prefix != "transformer."


def _dividing_size(config: dict[str, Any], groups: int, size: int) -> int:
    """Return the smallest group size from ``size`` up whose head count divides a Llama's width."""
    width = config_number(config, Key("hidden_size"))
    for wider in range(size, width // groups + 1):
        if width % (groups * wider) == 0:
            return wider
    raise NotExpressibleError(
        f"stock Llama wants a number of heads that divides hidden_size {width}, which no multiple of "
        f"{groups} does, and Mistral cannot hold this one; keep the folder as it is"
    )


def _placed_in_groups(
    model: SourceModel, attention: Attention, blocks: Sequence[Block]
) -> dict[Place, tuple[HeadLayout, tuple[int | None, ...]]]:
    """Place all layers of a kind in equal groups, as few as their layouts allow."""
    readers = {block.layer: _readers(block.layout) for block in blocks}
    groups = max(len(found) for found in readers.values())
    split = {layer: _split(found, groups) for layer, found in readers.items()}
    size = max(len(group) for found in split.values() for group in found)
    heads, head_dim = blocks[0].layout.num_attention_heads, blocks[0].layout.head_dim
    if model.family.model_type == "llama" and not _can_be_mistral(model):
        size = _dividing_size(model.config, groups, size)
    change = added_heads_change(attention, active_norms(model.config, attention))
    if change == "head_dim":
        _require_head_dim(model, groups * size, config_number(model.config, attention.num_attention_heads))
    if change == "norm":
        _require_equal_readers(model, split, size)
    target = HeadLayout.gqa(groups * size, groups, head_dim)
    placed = {}
    for block in blocks:
        order = tuple(
            head for group in split[block.layer] for head in (*group, *[None] * (size - len(group)))
        )
        if groups * size == heads and block.layout.is_stock_gqa and block.layout == target:
            order = tuple(range(heads))
        placed[block.place] = target, order
    return placed


def _readers(layout: HeadLayout) -> list[list[int]]:
    """Return attention heads by the pair of key and value head they read, in the stored heads' order."""
    pairs = list(zip(layout.key, layout.value, strict=True))
    return [[head for head, pair in enumerate(pairs) if pair == wanted] for wanted in sorted(set(pairs))]


def _split(readers: list[list[int]], groups: int) -> Slots:
    """Spread the readers over ``groups`` groups by copying the key/value heads with the most of them."""
    copies = [1] * len(readers)
    while sum(copies) < groups:
        fullest = max(range(len(readers)), key=lambda place: len(readers[place]) / copies[place])
        copies[fullest] += 1
    spread: list[tuple[int | None, ...]] = []
    for heads, count in zip(readers, copies, strict=True):
        size = -(-len(heads) // count)
        spread += [tuple(heads[first * size : (first + 1) * size]) for first in range(count)]
    return tuple(spread)


def added_heads_change(attention: Attention, norms: Sequence[HeadNorm]) -> Literal["head_dim", "norm"] | None:
    """Name the key or norm that added heads would change in a stock model; None if there is none.

    Args:
        attention: A kind of attention whose stock class reads ``num_key_value_heads``.
        norms: Its norms that are turned on.

    Returns:
        None where heads can be added.
    """
    if any(norm.span == "all_heads" for norm in norms):
        return "norm"
    is_fixed = not isinstance(attention.head_dim, Key) or any(norm.ignores_head_dim for norm in norms)
    return "head_dim" if is_fixed else None


def _require_head_dim(model: SourceModel, needed: int, heads: int) -> None:
    if needed != heads:
        raise NotExpressibleError(
            f"a stock {model.family.model_type} model has heads of hidden_size / num_attention_heads "
            f"features and so {heads} attention heads, these layouts need {needed}; keep the folder as it is"
        )


def _require_equal_readers(model: SourceModel, split: dict[int, Slots], size: int) -> None:
    for layer, groups in split.items():
        if any(len(group) < size for group in groups):
            raise NotExpressibleError(
                f"layer {layer}: {model.family.model_type} takes one norm over all heads, which added "
                "heads would change; unequal groups have no stock form here, keep the folder as it is"
            )
