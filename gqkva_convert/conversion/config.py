"""The configuration of a converted checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.conversion.model import SourceModel
from gqkva_convert.conversion.plan import Plan
from gqkva_convert.modeling.bundle import modeling_text
from gqkva_convert.modeling.families import (
    GROUPED_FAMILIES,
    MODEL_TYPE_PREFIX,
    auto_map,
    grouped_name,
    modeling_module,
)
from gqkva_convert.modeling.layouts import LAYOUTS, layouts_to_config


def write_config(model: SourceModel, plan: Plan, folder: Path) -> None:
    """Write a conversion's configuration and, where it needs one, its modelling file."""
    write_json(folder / "config.json", converted_config(model, plan))
    if not plan.is_native(model.family):
        family = GROUPED_FAMILIES[model.family.model_type]
        (folder / f"{modeling_module(family)}.py").write_text(modeling_text(family))


def converted_config(model: SourceModel, plan: Plan) -> dict[str, Any]:
    """The source's configuration with the new head counts; everything else as it was.

    A plan that the family's stock architecture can hold gives a stock configuration; any other names its
    layouts and the classes that read them.
    """
    config = copy.deepcopy(model.config)
    is_native = plan.is_native(model.family)
    for attention in model.family.attention:
        if attention.num_key_value_heads is not None and is_native:
            target = next(block.target for block in plan.blocks if block.kind == attention.kind)
            *parents, key = attention.num_key_value_heads.name.split(".")
            part = config
            for parent in parents:
                part = part[parent]
            part[key] = target.num_key_heads
    if plan.dtype is not None:
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[key] = plan.dtype
    config.pop("auto_map", None)  # names code that is not carried along
    config.pop(LAYOUTS, None)
    stock = [name.removeprefix(grouped_name("")) for name in config.get("architectures") or ()]
    if is_native:
        config["model_type"] = model.family.model_type
        if stock:
            config["architectures"] = stock
        return config
    family = GROUPED_FAMILIES[model.family.model_type]
    known = {name for names in family.auto_classes.values() for name in names}
    names = [name for name in stock if name in known] or [model.family.architecture]
    config["model_type"] = f"{MODEL_TYPE_PREFIX}{family.model_type}"
    config["architectures"] = [grouped_name(name) for name in names]
    config["auto_map"] = auto_map(family, config["architectures"])
    config[LAYOUTS] = layouts_to_config({(block.kind, block.layer): block.target for block in plan.blocks})
    return config
