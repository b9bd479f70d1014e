"""The model that is trained: its weights, and their learning rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from gqkva_convert.calibration.network import attention_blocks
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.errors import CheckpointError, TrainingError, first_line
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.modeling.resize import find_output, find_projection
from gqkva_convert.source.model import family_of
from gqkva_convert.uptraining.settings import TrainingSettings

# Rates are set for this width and fall as width grows (Yang et al., 2022, arXiv 2203.03466, table 3).
_WIDTH = 256
_RATES = {"all": 5e-4, "attention": 5e-4, "kv": 1e-3, "lora": 2e-3}
_FRESH_RATE = 3e-3


def load_student(folder: Path) -> Any:
    """Load the model of a folder, in float32, as it is trained.

    Raises:
        FamilyError: It is of no family that is known.
        CheckpointError: transformers cannot load it.
    """
    family = family_of(read_json(folder / "config.json"), folder)
    try:
        return load_model(folder, family.architecture)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {first_line(error)}") from error


def learning_rate(settings: TrainingSettings, model: Any, *, is_fresh: bool) -> float:
    """Choose the highest learning rate: the settings', or one for what is trained and the model's width.

    Args:
        settings: Of the run.
        model: What is trained.
        is_fresh: Whether it is no conversion, whose weights must not be shaken much.
    """
    if settings.learning_rate is not None:
        return settings.learning_rate
    rate = _FRESH_RATE if is_fresh and settings.train == "all" else _RATES[settings.train]
    return rate * min(1.0, _WIDTH / width_of(model))


def matching_rate(settings: TrainingSettings, model: Any) -> float:
    """Return the learning rate while attention blocks are matched."""
    return settings.matching_learning_rate * min(1.0, _WIDTH / width_of(model))


def width_of(model: Any) -> int:
    """Count the features of a model's hidden states."""
    config = getattr(model.config, "text_config", model.config)
    for name in ("hidden_size", "d_model", "n_embd", "dim"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return _WIDTH


def drop_nothing(model: Any) -> None:
    """Turn dropout off in a student that learns from a teacher, in place.

    The teacher drops nothing. Fitted to its answers under dropout, blocks would answer too little: the least
    squared error of a sum that is there half the time is not that of the sum.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def choose_trained(model: Any, settings: TrainingSettings) -> Any:
    """Freeze what is not trained; wraps the model where LoRA is.

    Raises:
        TrainingError: LoRA needs peft, which is not there; or keys are in one projection with queries.
    """
    if settings.train == "all":
        return model
    if settings.train == "lora":
        return add_lora(model, settings.lora_rank)
    blocks = attention_blocks(model)
    kept: set[int] = set()
    for block in blocks.values():
        modules = [block] if settings.train == "attention" else _keys_and_values(block)
        kept |= {id(parameter) for module in modules for parameter in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    return model


def _keys_and_values(block: Any) -> list[nn.Module]:
    """Return the projections of keys and values alone."""
    found = _projections(block, ("key", "value"))
    if any(module is _projections(block, ("query",))[0] for module in found):
        raise TrainingError(
            f"{type(block).__name__} holds queries, keys and values in one projection, so that kv are not "
            "trained alone; train attention"
        )
    return found


def add_lora(model: Any, rank: int) -> Any:
    """Add low-rank updates to every projection of attention by peft (Hu et al., 2021, arXiv 2106.09685).

    Raises:
        TrainingError: peft is not there.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise TrainingError(
            "train lora needs the package peft; pip install peft, or train attention"
        ) from error
    names = {module: name for name, module in model.named_modules()}
    targets = [
        names[projection]
        for block in attention_blocks(model).values()
        for projection in dict.fromkeys([*_projections(block, ("query", "key", "value")), *_output(block)])
    ]
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))


def _projections(block: Any, roles: tuple[str, ...]) -> list[nn.Module]:
    return [getattr(block, find_projection(block, role)) for role in roles]


def _output(block: Any) -> list[nn.Module]:
    """Return the output projection, where the block itself holds it."""
    name = find_output(block)
    return [] if name is None else [getattr(block, name)]


def parameter_groups(
    model: Any, settings: TrainingSettings, merged_roles: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Group the trained weights for an optimiser; ``rate`` is each group's rate relative to the rest.

    Args:
        model: The model, frozen as it will be.
        settings: Of the run.
        merged_roles: Roles whose heads were merged.
    """
    merged = {
        id(parameter)
        for block in attention_blocks(model).values()
        for module in _projections(block, merged_roles)
        for parameter in module.parameters()
    }
    attention = {
        id(parameter) for block in attention_blocks(model).values() for parameter in block.parameters()
    }
    groups: dict[tuple[float, float, bool], list[Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            rate = settings.merged_rate if id(parameter) in merged else 1.0
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay, id(parameter) in attention), []).append(parameter)
    return [
        {"params": members, "rate": rate, "weight_decay": decay, "attention": is_attention}
        for (rate, decay, is_attention), members in groups.items()
    ]


def make_optimizer(groups: list[dict[str, Any]], settings: TrainingSettings) -> Any:
    """Make AdamW, fused where torch can, or bitsandbytes' with 8-bit states.

    Raises:
        TrainingError: bitsandbytes is not there.
    """
    import torch

    if settings.optim == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise TrainingError(
                "optim adamw_8bit needs the package bitsandbytes; pip install bitsandbytes, or use adamw"
            ) from error
        return AdamW8bit(groups, lr=1e-3, betas=(0.9, 0.95))
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)
