"""The configuration of a converted checkpoint."""

from __future__ import annotations

import copy
from typing import Any

from gqkva_convert.conversion.model import SourceModel
from gqkva_convert.conversion.plan import Plan


def converted_config(model: SourceModel, plan: Plan) -> dict[str, Any]:
    """The source's configuration with the new head counts; everything else as it was."""
    config = copy.deepcopy(model.config)
    for attention in model.family.attention:
        if attention.num_key_value_heads is not None:
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
    return config
