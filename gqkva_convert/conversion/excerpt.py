"""A few layers of a checkpoint as a checkpoint of their own, small enough to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.folder import SAFETENSORS
from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.derivation.tiny import of_layers
from gqkva_convert.plans.config import converted_config
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.source.model import SourceModel, config_number
from gqkva_convert.steps.execute import write_shards
from gqkva_convert.steps.shards import Shard
from gqkva_convert.steps.step import Steps


def write_excerpt(model: SourceModel, plan: Plan, steps: Steps, layers: Sequence[int], folder: Path) -> None:
    """Write some layers of a conversion's output, renumbered from 0."""
    numbers = {layer: place for place, layer in enumerate(layers)}
    kept = []
    for step in steps.steps:
        name = _renumbered(step.name, model, numbers)
        if name is not None:
            kept.append(replace(step, name=name))
    folder.mkdir()
    shard = Shard(SAFETENSORS, tuple(kept))
    write_shards(model.checkpoint, plan, (shard,), folder, {"format": "pt"}, lambda _: None)
    write_json(folder / "config.json", excerpt_config(model, plan, layers))


def excerpt_plan(plan: Plan, layers: Sequence[int]) -> Plan:
    """Return the plan of some layers alone, renumbered from 0."""
    numbers = {layer: place for place, layer in enumerate(layers)}
    blocks = tuple(
        replace(block, layer=numbers[block.layer]) for block in plan.blocks if block.layer in numbers
    )
    return replace(plan, blocks=blocks)


def reversed_plan(plan: Plan) -> Plan:
    """Return the plan that expands a conversion's output to the source's layout, changing no value."""
    blocks = tuple(BlockPlan.reversed(block) for block in plan.blocks)
    return replace(
        plan, merge="mean", dtype=None, blocks=blocks, architecture=None, calibration=None, refine=()
    )


def excerpt_config(model: SourceModel, plan: Plan, layers: Sequence[int]) -> dict[str, Any]:
    """Return the converted configuration with fewer layers; lists with an entry per layer are cut, too."""
    config = converted_config(model, excerpt_plan(plan, layers))
    counts: dict[str, tuple[dict[str, Any], str, int]] = {}
    for attention in model.family.attention:
        *parents, name = attention.num_layers.name.split(".")
        part = config
        for parent in parents:
            part = part[parent]
        total = config_number(model.config, attention.num_layers)
        counts[".".join((*parents, name))] = part, name, sum(layer < total for layer in layers)
    for part, name, count in counts.values():
        part[name] = count
        if "num_hidden_layers" in part:  # another name of the encoder's or decoder's number
            part["num_hidden_layers"] = count
    total = 1 + max(block.layer for block in model.blocks)
    for part, _, _ in counts.values():
        part.update({key: of_layers(value, total, layers) for key, value in part.items()})
    return config


def _renumbered(name: str, model: SourceModel, numbers: dict[int, int]) -> str | None:
    """Return a tensor's name with its layer's new number; None if the layer is dropped."""
    found = model.find_layer(name)
    if found is None:
        return name
    layer = int(found[1])
    if layer not in numbers:
        return None
    return f"{name[: found.start(1)]}{numbers[layer]}{name[found.end(1) :]}"
