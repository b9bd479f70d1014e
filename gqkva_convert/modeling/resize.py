"""Giving a stock attention block the projections, norms and head counts of a layout."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from gqkva_convert.errors import LayoutError
from gqkva_convert.heads.layout import ROLES, HeadLayout
from gqkva_convert.modeling.attention import BlockConfig, HeadMaps
from gqkva_convert.modeling.families import BlockFacts

# Names of the three projections and of a fused one; transformers renames them between versions.
_PROJECTIONS = {
    "query": ("q_proj", "query", "q_lin", "q"),
    "key": ("k_proj", "key", "k_lin", "k"),
    "value": ("v_proj", "value", "v_lin", "v"),
}
_FUSED = ("c_attn", "query_key_value", "qkv_proj")
_NORMS = {"query": ("q_norm", "q_layernorm"), "key": ("k_norm", "k_layernorm")}
_OUTPUTS = ("o_proj", "out_proj", "out_lin", "dense", "c_proj", "o")


def find_block(name: str, module: Any, patterns: dict[str, str]) -> tuple[str, int] | None:
    """Kind and layer of the attention block that a module is, if it is one."""
    if not any(
        isinstance(getattr(module, fused, None), nn.Module) for fused in (*_FUSED, *_PROJECTIONS["query"])
    ):
        return None
    for kind, pattern in patterns.items():
        found = re.search(rf"(?:^|\.){pattern}$", name)
        if found:
            return kind, int(found[1])
    return None


def is_fused(block: Any) -> bool:
    """Whether a block holds queries, keys and values in one projection."""
    return any(hasattr(block, name) for name in _FUSED)


def find_projection(block: Any, role: str) -> str:
    """Name of the attribute of a block that holds a role's projection."""
    return next(name for name in (*_FUSED, *_PROJECTIONS[role]) if hasattr(block, name))


def find_output(block: Any) -> str | None:
    """Return the attribute of a block that holds its output projection; None if its parent holds it."""
    return next((name for name in _OUTPUTS if isinstance(getattr(block, name, None), nn.Module)), None)


def norm_names(role: str) -> tuple[str, ...]:
    """Return the names that the norm on queries or on keys has in the families' blocks."""
    return _NORMS[role]


def resize_block(block: Any, layout: HeadLayout, facts: BlockFacts, block_class: type | None) -> None:
    """Make a stock attention block hold the stored heads of ``layout`` and attend by it.

    New projections stand on the device of the old ones, with new weights; the model's own initialisation
    runs afterwards.

    Args:
        block: The stock block.
        layout: Its layout.
        facts: What its family reads besides shapes.
        block_class: Class with the family's own grouped forward, where the stock forward cannot serve.

    Raises:
        LayoutError: The block cannot hold the layout.
    """
    counts = {role: len(set(layout.stored_heads(role))) for role in ROLES}
    if facts.one_key_value_count and counts["key"] != counts["value"]:
        raise LayoutError(
            f"{type(block).__name__} reads as many key heads as value heads, "
            f"found {counts['key']} and {counts['value']}"
        )
    if layout.num_attention_heads != _attention_heads(block, layout.head_dim):
        raise LayoutError(
            f"attention_layouts gives {layout.num_attention_heads} heads of {layout.head_dim} features to "
            f"{type(block).__name__}, which has {_attention_heads(block, layout.head_dim)}"
        )
    sizes = {role: count * layout.head_dim for role, count in counts.items()}
    if is_fused(block):
        _resize_projection(block, find_projection(block, "query"), sum(sizes.values()))
    else:
        for role in ROLES:
            _resize_projection(block, find_projection(block, role), sizes[role])
    for role, names in _NORMS.items():
        for name in names:
            norm = getattr(block, name, None)
            if isinstance(norm, nn.Module):
                _resize_norm(norm, counts[role], layout.head_dim)
    for attribute, role in facts.counts.items():
        setattr(block, attribute, counts[role])
    if facts.sizes is not None:
        setattr(block, facts.sizes, [sizes[role] for role in ROLES])
    block.stock_module = type(block).__module__
    if block_class is not None:
        block.__class__ = block_class
    if hasattr(block, "use_layout"):
        block.use_layout(layout)
    block.head_maps = HeadMaps(layout)
    changed = {name: counts[role] for name, role in facts.config_counts.items()}
    block.config = BlockConfig(block.config, changed)
    block._is_hf_initialized = False


def split_block(block: Any, name: str, plan: dict[str, str], parts: int) -> None:
    """Let a block attend with its part of the heads, where tensor parallelism gives each process a part.

    Args:
        block: A grouped block, not yet distributed.
        name: Its name in the model.
        plan: How transformers distributes modules: names with ``*`` for a layer's number, and the way.
        parts: How many processes share the heads.

    Raises:
        LayoutError: The layout has no equal parts that read stored heads of their own.
    """
    split = {
        module.rpartition(".")[2]
        for module, way in plan.items()
        if way == "colwise"
        and re.fullmatch(re.escape(module.rpartition(".")[0]).replace(re.escape("*"), r"\d+"), name)
    }
    layout = block.head_maps.layout
    counts = {len(set(layout.stored_heads(role))) for role in ROLES}
    if not any(hasattr(block, projection) for projection in split):
        return
    try:
        if split.intersection(_FUSED) and len(counts) > 1:
            raise LayoutError(f"{layout.name} is stored in one tensor, queries before keys before values")
        block.head_maps = HeadMaps(layout.part(parts))
    except LayoutError as error:
        raise LayoutError(
            f"no tensor parallelism over {parts} processes for {name}: {error}; "
            f"load the model whole, or convert to numbers of heads that {parts} divides"
        ) from error


def _attention_heads(block: Any, head_dim: int) -> int:
    """How many heads of a width the stock block's queries hold."""
    if is_fused(block):
        heads: int = block.config.num_attention_heads
        return heads
    return int(getattr(block, find_projection(block, "query")).out_features // head_dim)


def _resize_projection(block: Any, name: str, size: int) -> None:
    projection = getattr(block, name)
    weight, bias = projection.weight, getattr(projection, "bias", None)
    axis = 0 if isinstance(projection, nn.Linear) else 1  # GPT-2's Conv1D stores (in, out)
    if weight.shape[axis] == size:
        return
    with torch.device(weight.device):
        if isinstance(projection, nn.Linear):
            new: Any = nn.Linear(projection.in_features, size, bias=bias is not None, dtype=weight.dtype)
        else:
            new = type(projection)(size, weight.shape[0]).to(weight.dtype)
    setattr(block, name, new)


def _resize_norm(norm: Any, count: int, head_dim: int) -> None:
    """A norm that holds something for each stored head; one gain for all heads stays as it is."""
    if isinstance(getattr(norm, "norms", None), nn.ModuleList):  # StableLM: a norm a head
        norm.norms = norm.norms[:count]
        norm.num_heads = count
    elif norm.weight.shape[0] not in (head_dim, count * head_dim):  # OLMo-2: one norm over all heads
        norm.weight = nn.Parameter(norm.weight.new_ones(count * head_dim))
