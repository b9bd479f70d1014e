"""A checkpoint read through its family's table: which tensors are attention, and in which layout."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqkva_convert.architectures import TEXT, Attention, Bias, Family, HeadNorm, Key, Quotient
from gqkva_convert.checkpoint.folder import Checkpoint, open_checkpoint
from gqkva_convert.checkpoint.modules import require_one_transformer
from gqkva_convert.errors import FamilyError, LayoutError
from gqkva_convert.heads import HeadLayout, Place, place_name
from gqkva_convert.modeling.families import find_family
from gqkva_convert.modeling.layouts import LAYOUTS, layouts_from_config
from gqkva_convert.modeling.stored_class import stored_classes
from gqkva_convert.source.config_keys import check_config, is_grouped
from gqkva_convert.source.deci import MISTRAL, deci_layouts, is_deci


@dataclass(frozen=True)
class Block:
    """One attention block of one layer.

    Attributes:
        attention: The facts of its kind.
        layer: Number of its layer.
        layout: How its attention heads read its stored heads.
        prefix: Prefix of its tensors in this checkpoint.
    """

    attention: Attention
    layer: int
    layout: HeadLayout
    prefix: str

    @property
    def place(self) -> Place:
        return self.attention.kind, self.layer

    @property
    def where(self) -> str:
        return place_name(self.place)

    def tensor_name(self, template: str, head: int = 0) -> str:
        """Return the name of a tensor of this block from a template of the family table."""
        return self.prefix + template.replace("{layer}", str(self.layer)).replace("{head}", str(head))


@dataclass(frozen=True)
class SourceModel:
    """A checkpoint and what its family's table says about it.

    Attributes:
        classes: Stock class that it stores; several where its tensors do not decide (`stored_classes`).
    """

    checkpoint: Checkpoint
    family: Family
    prefix: str
    blocks: tuple[Block, ...]
    classes: tuple[str, ...]

    @property
    def config(self) -> dict[str, Any]:
        return self.checkpoint.config

    def find_layer(self, name: str) -> re.Match[str] | None:
        """Match the layer's number, group 1, in the name of a tensor that belongs to a layer."""
        templates = (p.name for block in self.family.attention for p in block.projections)
        lists = {re.escape(template.partition("{layer}")[0]) for template in templates}
        return re.match(rf"{re.escape(self.prefix)}(?:{'|'.join(sorted(lists))})(\d+)\.", name)


def open_model(folder: Path) -> SourceModel:
    """Open a checkpoint folder and read its attention blocks; no weights are read.

    Raises:
        CheckpointError: The folder is not a complete checkpoint.
        FamilyError: Its family, a key of its configuration, or a module behind it is not known.
        WeightError: Its weights are quantised.
    """
    checkpoint = open_checkpoint(folder)
    require_one_transformer(folder)
    return read_model(checkpoint)


def read_model(checkpoint: Checkpoint, family: Family | None = None) -> SourceModel:
    """Read the attention blocks of an opened checkpoint; raises as `open_model` does.

    Args:
        checkpoint: The checkpoint.
        family: Table to read it by; None for that of its model type.
    """
    family = family or family_of(checkpoint.config, checkpoint.folder)
    check_config(checkpoint.config, family, checkpoint.folder)
    classes = stored_classes(family, checkpoint.config, checkpoint.names)
    family = family.part(classes[0])
    prefix = _find_prefix(checkpoint, family)
    named = _named_layouts(checkpoint.config, family)
    blocks = tuple(
        Block(
            attention,
            layer,
            named.get((attention.kind, layer)) or block_layout(checkpoint.config, attention),
            prefix,
        )
        for attention in family.attention
        for layer in range(_layers(checkpoint, attention))
    )
    return SourceModel(checkpoint, family, prefix, blocks, classes)


def _layers(checkpoint: Checkpoint, attention: Attention) -> int:
    """Return the number of layers with a kind of attention; each stores tensors of its own."""
    layers = config_number(checkpoint.config, attention.num_layers)
    if layers > len(checkpoint.tensors):
        raise FamilyError(
            f"config.json: {layers} layers, the weight files hold {len(checkpoint.tensors)} tensors in all"
        )
    return layers


def _named_layouts(config: dict[str, Any], family: Family) -> dict[Place, HeadLayout]:
    """Return the layouts that a configuration names block by block, by kind of attention and layer.

    Raises:
        FamilyError: They are not readable, of blocks that the model lacks, or of other heads than it has.
    """
    if is_deci(config):
        (only,) = family.attention
        numbers = (only.num_attention_heads, only.head_dim, only.num_layers)
        return deci_layouts(config, *(config_number(config, number) for number in numbers))
    if not is_grouped(config):
        return {}
    facts = {attention.kind: attention for attention in family.attention}
    try:
        layouts = layouts_from_config(config.get(LAYOUTS) or {})
    except LayoutError as error:
        raise FamilyError(f"config.json: {error}") from error
    for (kind, layer), layout in layouts.items():
        attention = facts.get(kind)
        if attention is None or layer not in range(config_number(config, attention.num_layers)):
            raise FamilyError(
                f"config.json: {LAYOUTS} names layer {layer} of {kind!r}, which the model lacks"
            )
        heads = config_number(config, attention.num_attention_heads)
        head_dim = config_number(config, attention.head_dim)
        if (layout.num_attention_heads, layout.head_dim) != (heads, head_dim):
            raise FamilyError(
                f"config.json: {LAYOUTS} gives layer {layer} of {kind!r} {layout.num_attention_heads} heads "
                f"of {layout.head_dim} features, the configuration says {heads} of {head_dim}"
            )
    return layouts


def family_of(config: dict[str, Any], folder: Path) -> Family:
    """Return the record of a configuration's family; for a DeciLM that is Mistral's.

    Raises:
        FamilyError: There is none.
    """
    text = config.get(TEXT)
    inner = str(text["model_type"]) if isinstance(text, dict) and "model_type" in text else None
    return find_family(MISTRAL if is_deci(config) else str(config.get("model_type")), folder, inner)


def config_number(config: dict[str, Any], key: Key | Quotient) -> int:
    """Return a whole number of the configuration, or transformers' default.

    Raises:
        FamilyError: It is missing, no whole number of at least 1, or does not divide.
    """
    if isinstance(key, Quotient):
        above, below = config_number(config, key.above), config_number(config, key.below)
        if above % below:
            raise FamilyError(
                f"config.json: {key.above.name} {above} is not a multiple of {key.below.name} {below}"
            )
        return above // below
    part, name = _place(config, key.name)
    value: Any = part.get(name)
    if value is None:
        value = key.null if name in part and key.null is not None else key.default
    if isinstance(value, (Key, Quotient)):
        return config_number(config, value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FamilyError(f"config.json: {key.name} must be a whole number of at least 1, found {value!r}")
    return value


def _place(config: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Return the part of a configuration that a dotted key is in, and its last word; empty if absent."""
    part: Any = config
    *parents, name = key.split(".")
    for parent in parents:
        part = part.get(parent) if isinstance(part, dict) else None
    return part if isinstance(part, dict) else {}, name


def attention_config(config: dict[str, Any], attention: Attention) -> dict[str, Any]:
    """Return the part of a configuration that describes a kind of attention: all of it, or a text model's."""
    return _place(config, attention.num_attention_heads.name)[0]


def block_layout(config: dict[str, Any], attention: Attention) -> HeadLayout:
    """Return the layout of one kind of block, as stock transformers builds it from the configuration."""
    heads = config_number(config, attention.num_attention_heads)
    head_dim = config_number(config, attention.head_dim)
    if attention.num_key_value_heads is None:
        return HeadLayout.mha(heads, head_dim)
    return HeadLayout.gqa(heads, config_number(config, attention.num_key_value_heads), head_dim)


def has_bias(config: dict[str, Any], bias: Bias) -> bool:
    """Return whether a projection has a bias under this configuration."""
    if bias.key is None:
        return bias.present
    part, name = _place(config, bias.key)
    return bool(part.get(name, bias.present))


def active_norms(config: dict[str, Any], attention: Attention) -> list[HeadNorm]:
    """Return the norms on queries and keys that this configuration turns on."""
    return [norm for norm in attention.norms if norm.key is None or _is_on(config, norm.key)]


def _is_on(config: dict[str, Any], key: str) -> bool:
    part, name = _place(config, key)
    return bool(part.get(name))


def _find_prefix(checkpoint: Checkpoint, family: Family) -> str:
    first = family.attention[0].projections[0].name.replace("{layer}", "0") + ".weight"
    for prefix in family.prefixes:
        if prefix + first in checkpoint.tensors:
            return prefix
    raise FamilyError(
        f"{checkpoint.folder}: a {family.model_type} checkpoint stores "
        f"{family.prefixes[0] + first!r}, this one does not"
    )


def stored_count(layout: HeadLayout, role: str) -> int:
    """Return the stored heads of a role; an output projection has one input block per attention head."""
    return layout.num_attention_heads if role == "output" else len(set(layout.stored_heads(role)))
