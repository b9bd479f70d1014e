"""The configuration of a converted checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gqkva_convert.architectures import FAMILIES, Attention, Family, Key
from gqkva_convert.checkpoint.folder import WEIGHTS_KEY
from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.errors import FamilyError, NotExpressibleError
from gqkva_convert.heads import HeadLayout, Place
from gqkva_convert.modeling.bundle import modeling_text
from gqkva_convert.modeling.families import (
    GROUPED_FAMILIES,
    auto_map,
    grouped_name,
    grouped_type,
    modeling_module,
    stock_name,
    stock_type,
)
from gqkva_convert.modeling.layouts import LAYOUTS, layouts_to_config
from gqkva_convert.modeling.stored_class import unclear_class
from gqkva_convert.plans.plan import Plan
from gqkva_convert.plans.tokenizer_classes import name_classes
from gqkva_convert.source.deci import DECI, is_deci, mistral_config
from gqkva_convert.source.deci_form import deci_config
from gqkva_convert.source.model import SourceModel, config_number

Layouts = Mapping[Place, HeadLayout]


def write_config(model: SourceModel, plan: Plan, config: dict[str, Any], folder: Path) -> None:
    """Write a conversion's configuration (`converted_config`) and, where it needs one, its modelling file."""
    write_json(folder / "config.json", config)
    if plan.architecture != DECI and not plan.is_native(model.family):
        family = GROUPED_FAMILIES[plan.architecture or model.family.model_type]
        (folder / f"{modeling_module(family)}.py").write_text(modeling_text(family))
        name_classes(folder, FAMILIES[family.model_type], config)


def converted_config(model: SourceModel, plan: Plan) -> dict[str, Any]:
    """Return the source's configuration with the new head counts; everything else is unchanged.

    A plan that the family's stock architecture can hold gives a stock configuration; any other names its
    layouts and the classes that read them. A class whose head is not stored gives way to the one that is.

    Raises:
        FamilyError: The class has no grouped form, or is unclear.
    """
    config = copy.deepcopy(model.config)
    config.pop(WEIGHTS_KEY, None)  # the result's weights have their usual name
    if plan.dtype is not None:
        _set_dtype(config, plan.dtype)
    layouts = {block.place: block.target for block in plan.blocks}
    if plan.architecture == DECI:
        if not model.classes[0].endswith("ForCausalLM") and not is_deci(model.config):
            raise NotExpressibleError(
                f"{model.checkpoint.folder} holds a {model.classes[0]}; a DeciLM is a language model"
            )
        return deci_config(config, layouts)
    named = next(iter(_stock_names(config)), None)
    is_needed = named is not None or not plan.is_native(model.family)
    if named not in model.classes and is_needed:
        if len(model.classes) > 1:
            raise FamilyError(f"{model.checkpoint.folder}: {unclear_class(model.classes)}")
        config["architectures"] = list(model.classes)
    family = FAMILIES[plan.architecture] if plan.architecture else model.family
    if family.is_derived and not plan.is_native(family):
        raise FamilyError(
            f"{family.model_type} has a generated table, which gives stock checkpoints alone: one number of "
            "key/value heads in all layers, neighbours sharing; use --gkv"
        )
    return config_for(config, family, layouts, is_native=plan.is_native(model.family))


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Put a dtype under the keys that name one, its old name too, also inside the parts of a model."""
    for key in [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]:
        config[key] = dtype
    for part in config.values():
        if isinstance(part, dict) and {"dtype", "torch_dtype"} & part.keys():
            _set_dtype(part, dtype)


def config_for(
    config: dict[str, Any], family: Family, layouts: Layouts, *, is_native: bool
) -> dict[str, Any]:
    """Return a configuration with other layouts.

    Args:
        config: A stock or grouped configuration, or a DeciLM's; not changed.
        family: The family to write.
        layouts: Layouts by kind of attention and layer.
        is_native: Whether the family's stock architecture holds them.
    """
    config = mistral_config(config) if is_deci(config) else copy.deepcopy(config)
    for attention in family.attention:
        _set_heads(config, attention, layouts[attention.kind, 0], is_native)
    return _for_stock(config, family) if is_native else _for_grouped(config, family, layouts)


def _set_heads(config: dict[str, Any], attention: Attention, target: HeadLayout, is_native: bool) -> None:
    """Put a layout's counts under the family's own keys, where they change."""
    heads = target.num_attention_heads
    if heads != config_number(config, attention.num_attention_heads):
        _set(config, attention.num_attention_heads, heads)
        if isinstance(attention.head_dim, Key):
            _set(config, attention.head_dim, target.head_dim)
    if attention.num_key_value_heads is None:
        return
    if is_native:
        _set(config, attention.num_key_value_heads, target.num_key_heads)
    elif heads % config_number(config, attention.num_key_value_heads):
        _set(config, attention.num_key_value_heads, heads)


def _set(config: dict[str, Any], key: Key, number: int) -> None:
    *parents, name = key.name.split(".")
    part = config
    for parent in parents:
        part = part.setdefault(parent, {})
    part[name] = number


def _for_stock(config: dict[str, Any], family: Family) -> dict[str, Any]:
    config.pop("auto_map", None)  # names code that is not carried along
    config.pop(LAYOUTS, None)
    old = stock_type(config["model_type"])
    config["model_type"] = family.model_type
    if config.get("architectures"):
        config["architectures"] = _stock_names(config)
    if old == "llama" and family.model_type == "mistral":
        if config.get("architectures"):
            config["architectures"] = [name.replace("Llama", "Mistral") for name in config["architectures"]]
        config["sliding_window"] = None
        for name in ("attention_bias", "mlp_bias", "pretraining_tp"):
            config.pop(name, None)
    return config


def _for_grouped(config: dict[str, Any], family: Family, layouts: Layouts) -> dict[str, Any]:
    grouped = GROUPED_FAMILIES[family.model_type]
    known = grouped.stock_classes
    names = _stock_names(config) or [family.architecture]
    for name in names:
        if name not in known:
            raise FamilyError(
                f"config.json names the class {name!r}, which has no grouped form; "
                f"{family.model_type} has {', '.join(sorted(known))}"
            )
    config["model_type"] = grouped_type(family.model_type)
    config["architectures"] = [grouped_name(name) for name in names]
    config["auto_map"] = auto_map(grouped, config["architectures"])
    config[LAYOUTS] = layouts_to_config(layouts)
    return config


def _stock_names(config: dict[str, Any]) -> list[str]:
    return [stock_name(name) for name in config.get("architectures") or ()]
