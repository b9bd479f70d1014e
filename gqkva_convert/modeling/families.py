"""Stock classes and places of attention blocks that grouped models are built from, derived from the records.

A modelling file carries the definitions above `_FACTS`, and its family's `GroupedFamily`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from gqkva_convert.architectures import FAMILIES, NATIVE, NESTED, REFUSED, Attention, Family, around
from gqkva_convert.errors import FamilyError

# Before the stock model type, so that it stays recognisable: "gqkva_bert".
MODEL_TYPE_PREFIX = "gqkva_"


@dataclass(frozen=True)
class BlockFacts:
    """What a family's attention blocks read besides the shapes of their projections.

    Attributes:
        counts: Attributes that hold a number of stored heads, and of which role.
        config_counts: The same for numbers read from the configuration.
        sizes: An attribute that holds the three projections' sizes.
        one_key_value_count: Whether the block can read only as many key heads as value heads.
    """

    counts: dict[str, str] = field(default_factory=dict)
    config_counts: dict[str, str] = field(default_factory=dict)
    sizes: str | None = None
    one_key_value_count: bool = False


@dataclass(frozen=True)
class GroupedFamily:
    """One ``model_type`` that can be built with grouped attention.

    Attributes:
        model_type: The stock model type.
        config: Name of the stock configuration class.
        blocks: Where a kind's attention blocks stand: a pattern for the end of a module's name, with the
            layer's number as its group.
        auto_classes: For each Auto class, the stock classes it may give, the usual one first.
        facts: What the blocks read besides shapes.
    """

    model_type: str
    config: str
    blocks: dict[str, str]
    auto_classes: dict[str, tuple[str, ...]]
    facts: BlockFacts = BlockFacts()

    @property
    def stock_classes(self) -> tuple[str, ...]:
        """Every stock class that an Auto class may give, once."""
        return tuple(dict.fromkeys(name for names in self.auto_classes.values() for name in names))


def grouped_name(stock: str) -> str:
    """Name of the grouped class of a stock class."""
    return f"Gqkva{stock}"


def auto_map(family: GroupedFamily, architectures: Sequence[str] | None = None) -> dict[str, str]:
    """Which class of the modelling file each Auto class gives.

    Args:
        family: The family.
        architectures: Classes of the checkpoint, preferred where an Auto class may give several.
    """
    file = modeling_module(family)
    named = {"AutoConfig": f"{file}.{grouped_name(family.config)}"}
    for auto, names in family.auto_classes.items():
        preferred = [name for name in names if grouped_name(name) in (architectures or ())]
        named[auto] = f"{file}.{grouped_name((preferred or names)[0])}"
    return named


def modeling_module(family: GroupedFamily) -> str:
    """Name of the modelling file that a checkpoint carries, without its ending."""
    return f"modeling_{MODEL_TYPE_PREFIX}{family.model_type}"


# What blocks read besides the shapes of their projections, where they read any of it.
_FACTS = {
    "phi3": BlockFacts(
        {"num_key_value_heads": "key"}, {"num_attention_heads": "query"}, one_key_value_count=True
    ),
    "stablelm": BlockFacts({"num_heads": "query", "num_key_value_heads": "key"}, one_key_value_count=True),
    "gpt2": BlockFacts(sizes="split_size"),
    "whisper": BlockFacts({"num_heads": "key"}, one_key_value_count=True),
}


def grouped_family(family: Family) -> GroupedFamily:
    """Derive from a family's record what its grouped models are built from."""
    return GroupedFamily(
        family.model_type,
        family.config_class,
        {attention.kind: _block_pattern(attention, family) for attention in family.attention},
        family.auto_classes,
        _FACTS.get(family.model_type, BlockFacts()),
    )


def _block_pattern(attention: Attention, family: Family) -> str:
    """Return the pattern of the modules that hold a kind's projections, from the layer list on if unique."""
    if attention.modules is not None:
        return attention.modules
    module = attention.projections[0].name.rpartition(".")[0]
    before, _, inside = module.partition("{layer}")
    if len(family.attention) == 1:
        before = before.removesuffix(".").rpartition(".")[2] + "."
    return rf"{re.escape(before)}(\d+){re.escape(inside)}"


GROUPED_FAMILIES = {name: grouped_family(family) for name, family in FAMILIES.items()}


def stock_name(name: str) -> str:
    """Return the name of the stock class of a grouped class; a stock class's name is unchanged."""
    return name.removeprefix(grouped_name(""))


def stock_type(model_type: str) -> str:
    """Return the stock model type of a grouped one; a stock one is unchanged."""
    return model_type.removeprefix(MODEL_TYPE_PREFIX)


def grouped_type(model_type: str) -> str:
    """Return the grouped model type of a stock one."""
    return f"{MODEL_TYPE_PREFIX}{model_type}"


def find_family(model_type: str, where: object, text: str | None = None) -> Family:
    """Return the record of a model type, stock or grouped.

    Args:
        model_type: As a configuration names it.
        where: Folder or class that has it, for the message.
        text: Type of the text model inside, where the configuration names one.

    Raises:
        FamilyError: There is none.
    """
    name = stock_type(model_type)
    if model_type in NESTED:
        outer = NESTED[model_type]
        return around(outer, _text_family(text or outer.text, model_type, where))
    family = FAMILIES.get(name) or (NATIVE.get(name) if name == model_type else None)
    if family is None and name in REFUSED:
        raise FamilyError(f"{where}: no family table for model_type {model_type!r}: {REFUSED[name]}")
    if family is None:
        raise FamilyError(
            f"{where}: no family table for model_type {model_type!r}; known are "
            f"{', '.join(sorted({**FAMILIES, **NATIVE, **NESTED}))}"
        )
    return family


def _text_family(text: str, model_type: str, where: object) -> Family:
    """Return the record of a text model inside another model, which has to be a stock decoder."""
    family = find_family(text, f"{where} ({model_type})")
    if not family.is_native or len(family.attention) > 1 or text in NESTED:
        raise FamilyError(
            f"{where}: the text model of this {model_type} is of type {text!r}, which transformers cannot "
            "read with fewer key/value heads there"
        )
    return family
