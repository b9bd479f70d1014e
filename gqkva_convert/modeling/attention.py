"""Attention whose heads read stored heads by a layout's maps, through transformers' attention interface."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gqkva_convert.heads.layout import HeadLayout

# Unique to this file, since a checkpoint's own copy may be loaded beside another version of it.
INTERFACE = f"gqkva:{__name__}"


class HeadSelection:
    """Heads taken from one axis, by views where the pattern allows it.

    An index tensor is kept for each device, since sending one there at every call would stall a GPU; a graph
    being traced holds slices instead.

    Args:
        heads: Which head of the source stands at each place of the result.
        count: Heads of the source.
    """

    def __init__(self, heads: tuple[int, ...], count: int) -> None:
        self.heads = heads
        self.is_identity = heads == tuple(range(count))
        self.repeats = self.tiles = self.rows = 0
        size = len(heads) // count
        everything = tuple(range(count))
        if heads == tuple(head for head in everything for _ in range(size)):
            self.repeats = size
        elif heads == everything * size:
            self.tiles = size
        elif len(heads) == count:
            self.rows = next((rows for rows in range(2, count) if _transposed(count, rows) == heads), 0)
        runs: list[list[int]] = []
        for head in heads:
            if runs and head == runs[-1][0] + runs[-1][1]:
                runs[-1][1] += 1
            else:
                runs.append([head, 1])
        self.runs = tuple((start, length) for start, length in runs)
        self.indices: dict[torch.device, Tensor] = {}

    def __call__(self, states: Tensor, axis: int) -> Tensor:
        """Take the heads from ``states`` along ``axis``."""
        if self.is_identity:
            return states
        if self.repeats:
            shape = (*states.shape[: axis + 1], self.repeats, *states.shape[axis + 1 :])
            return states.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)
        if self.tiles:
            shape = (*states.shape[:axis], self.tiles, *states.shape[axis:])
            return states.unsqueeze(axis).expand(shape).flatten(axis, axis + 1)
        if self.rows:
            shape = (*states.shape[:axis], self.rows, -1, *states.shape[axis + 1 :])
            return states.reshape(shape).transpose(axis, axis + 1).flatten(axis, axis + 1)
        if torch.compiler.is_compiling():
            return torch.cat([states.narrow(axis, start, length) for start, length in self.runs], axis)
        index = self.indices.get(states.device)
        if index is None:
            with torch.inference_mode(False):  # or training could not use what inference made
                index = self.indices[states.device] = torch.tensor(self.heads, device=states.device)
        return states.index_select(axis, index)


def _transposed(count: int, rows: int) -> tuple[int, ...]:
    """Order of a grid's cells, read column by column."""
    if count % rows:
        return ()
    columns = count // rows
    return tuple(row * columns + column for column in range(columns) for row in range(rows))


class HeadMaps:
    """How one block's stored heads meet, worked out once from its layout.

    Attention heads that read the same key and value head stand next to each other in ``slots``, every group
    filled up to the size of the largest, which is the grouped shape that attention kernels take.

    Attributes:
        layout: The layout.
        group_size: Slots of each group.
        is_padded: Whether a group is smaller than that; its last head then fills the empty slots.
        keys: Stored key head of each group.
        values: Stored value head of each group.
        queries: Stored query head of each slot.
        heads: Slot of each attention head.
        heads_by_member: The same where the first slots of all groups come first, then the second ones...
        expanded: Stored query, key and value head of each attention head.
        head_slots: Attention head of each slot, for what comes with one entry an attention head.
    """

    def __init__(self, layout: HeadLayout) -> None:
        self.layout = layout
        pairs = sorted(set(zip(layout.key, layout.value, strict=True)))
        groups = [
            [head for head, read in enumerate(zip(layout.key, layout.value, strict=True)) if read == pair]
            for pair in pairs
        ]
        self.group_size = max(len(group) for group in groups)
        self.is_padded = any(len(group) < self.group_size for group in groups)
        slots = [head for group in groups for head in group + group[-1:] * (self.group_size - len(group))]
        count = layout.num_attention_heads
        self.keys = HeadSelection(tuple(key for key, _ in pairs), layout.num_key_heads)
        self.values = HeadSelection(tuple(value for _, value in pairs), layout.num_value_heads)
        self.queries = HeadSelection(tuple(layout.query[head] for head in slots), layout.num_query_heads)
        size, groups_count = self.group_size, len(groups)
        members = tuple(slots.index(head) for head in range(count))
        self.heads = HeadSelection(members, len(slots))
        self.heads_by_member = HeadSelection(
            tuple(slot % size * groups_count + slot // size for slot in members), len(slots)
        )
        self.head_slots = HeadSelection(tuple(slots), count)
        self.expanded = (
            HeadSelection(layout.query, layout.num_query_heads),
            HeadSelection(layout.key, layout.num_key_heads),
            HeadSelection(layout.value, layout.num_value_heads),
        )

    def expand(self, states: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Stored queries, keys and values repeated for every attention head."""
        return tuple(select(state, 1) for select, state in zip(self.expanded, states, strict=True))


class BlockConfig:
    """A model's configuration as one grouped attention block reads it: all the same but a few values.

    What is set here is set in the model's configuration, unless it is one of those values.

    Args:
        stock: The configuration, shared with the model, so that a change there is seen here.
        changed: Values that differ for this block.
    """

    def __init__(self, stock: Any, changed: dict[str, Any]) -> None:
        self.__dict__.update(stock=stock, changed=changed)

    @property
    def _attn_implementation(self) -> str:
        return INTERFACE

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "stock" not in self.__dict__:
            raise AttributeError(name)
        changed = self.__dict__["changed"]
        return changed[name] if name in changed else getattr(self.__dict__["stock"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.changed:
            self.changed[name] = value
        else:
            setattr(self.stock, name, value)


class _Kernel:
    """What attention functions of transformers read of the module they work for."""

    def __init__(self, module: Any, num_key_value_groups: int) -> None:
        self.num_key_value_groups = num_key_value_groups
        self.config = module.config.stock
        self.training = module.training
        self.is_causal = getattr(module, "is_causal", False)
        self.layer_idx = getattr(module, "layer_idx", None)
        self.sliding_window = getattr(module, "sliding_window", None)
        self.scaling = getattr(module, "scaling", None)
        self.modules: Callable[[], Any] = module.modules


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over stored heads; transformers' own function for the implementation asked for does it.

    Keys and values are never repeated for the heads that share them, except where eager attention was asked
    for or where groups are unequal and several positions are attended from at once (see `_unequal`).

    Args:
        module: The attention block, with its `HeadMaps` in ``head_maps``.
        query: ``(batch, stored query heads, positions, head_dim)``.
        key: ``(batch, stored key heads, key positions, head_dim)``.
        value: ``(batch, stored value heads, key positions, head_dim)``.
        attention_mask: As the implementation takes it; for all heads, or one entry an attention head.
        options: Passed on, T5's ``position_bias`` ``(1, attention heads, positions, key positions)`` by slot.

    Returns:
        Heads' outputs ``(batch, positions, attention heads, head_dim)``, and weights where the implementation
        gives any.
    """
    maps: HeadMaps = module.head_maps
    position_bias = options.get("position_bias")
    implementation = module.config.stock._attn_implementation
    eager = sys.modules[module.stock_module].eager_attention_forward
    if implementation is None or implementation == "eager":
        return _eager(eager, module, maps, (query, key, value), attention_mask, options)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    groups, size = len(maps.keys.heads), maps.group_size
    if implementation == "sdpa" and query.shape[2] == 1 and size > 1:
        # One position: the slots of a group take the place of positions, so that no kernel repeats a key.
        query = maps.queries(query, 1).reshape(query.shape[0], groups, size, query.shape[-1])
        mask = _one_position(attention_mask, maps, groups)
        if position_bias is not None:
            options["position_bias"] = _one_position(position_bias, maps, groups)
        options["is_causal"] = False
        key, value = maps.keys(key, 1), maps.values(value, 1)
        output, _ = attend(_Kernel(module, 1), query, key, value, mask, **options)
        # (batch, slots of a group, groups, head_dim) -> (batch, 1, attention heads, head_dim)
        return maps.heads_by_member(output.flatten(1, 2).unsqueeze(1), 2), None
    is_paged = options.get("cache") is not None  # which takes stored heads here, as many for every layer
    if maps.is_padded and "flash" not in implementation and not is_paged:
        return _unequal(attend, module, maps, (query, key, value), attention_mask, options)
    if position_bias is not None:
        options["position_bias"] = _by_slot(position_bias, maps)
    mask = _by_slot(attention_mask, maps)
    query, key, value = maps.queries(query, 1), maps.keys(key, 1), maps.values(value, 1)
    output, _ = attend(_Kernel(module, size), query, key, value, mask, **options)
    return maps.heads(output, 2), None


def _eager(
    eager: Callable[..., tuple[Tensor, Tensor]],
    module: Any,
    maps: HeadMaps,
    states: tuple[Tensor, Tensor, Tensor],
    attention_mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """The stock family's own formula on heads repeated for every attention head."""
    query, key, value = maps.expand(states)
    if getattr(module, "reorder_and_upcast_attn", False):  # GPT-2's scores in float32
        upcast: tuple[Tensor, Tensor] = module._upcast_and_reordered_attn(query, key, value, attention_mask)
        return upcast
    return eager(_Kernel(module, 1), query, key, value, attention_mask, **options)


def _unequal(
    attend: Callable[..., tuple[Tensor, Any]],
    module: Any,
    maps: HeadMaps,
    states: tuple[Tensor, Tensor, Tensor],
    attention_mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, None]:
    """Groups of unequal size at many positions: filling them up would cost more than repeating keys."""
    query, key, value = maps.expand(states)
    output, _ = attend(_Kernel(module, 1), query, key, value, attention_mask, **options)
    return output, None


def _by_slot(mask: Any, maps: HeadMaps) -> Any:
    """A mask or bias with one entry an attention head, by slot; one that all heads share as it is."""
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[1] > 1:
        return maps.head_slots(mask, 1)
    return mask


def _one_position(mask: Tensor | None, maps: HeadMaps, groups: int) -> Tensor | None:
    """As `_by_slot` for one position, a group's slots in the place of positions."""
    if mask is None or mask.shape[1] == 1:
        return mask
    return maps.head_slots(mask, 1).reshape(mask.shape[0], groups, maps.group_size, mask.shape[-1])


ALL_ATTENTION_FUNCTIONS.register(INTERFACE, grouped_attention)
