"""Stock models with random weights, built from a configuration and run on fixed inputs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqkva_convert.errors import FamilyError, first_line
from gqkva_convert.modeling.loading import main_output, ordinary_tokens
from gqkva_convert.modeling.log_levels import quiet_transformers

# More parameters than this after shrinking: a size was not recognised as one.
_MOST_PARAMETERS = 8_000_000
_LENGTH = 24
# Positions far apart, so that slow planes turn visibly; of the model's range where it is smaller.
_FARTHEST = 16_384


def stock_config(model_type: str, config: Mapping[str, Any]) -> Any:
    """Return transformers' configuration object of a configuration.

    Raises:
        FamilyError: This version of transformers does not know the type, or refuses the values.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        raise _unknown_type(model_type)
    values = {key: value for key, value in config.items() if key not in ("model_type", "auto_map")}
    try:
        return CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(values))  # it fills in what is nested
    except Exception as error:  # whatever a configuration class raises
        raise FamilyError(
            f"transformers refuses this configuration of {model_type}: {first_line(error)}"
        ) from error


def modeling_file(architecture: str) -> Path:
    """Return the file of transformers that defines a class.

    Raises:
        FamilyError: This version of transformers has no such class.
    """
    return Path(inspect.getfile(stock_class(architecture)))


def stock_class(architecture: str) -> Any:
    """Return a class of transformers.

    Raises:
        FamilyError: This version of transformers has none of that name.
    """
    import transformers

    found = getattr(transformers, architecture, None)
    if found is None:
        raise FamilyError(
            f"transformers {transformers.__version__} has no class {architecture}; install a later version"
        )
    return found


def _unknown_type(model_type: str) -> FamilyError:
    import transformers

    return FamilyError(
        f"transformers {transformers.__version__} does not know model_type {model_type!r}; use a later one"
    )


def build(config: Any, architecture: str, seed: int = 0) -> Any:
    """Build a stock model in float64 with random weights, in eval mode.

    Args:
        config: Configuration object with small sizes.
        architecture: Name of the stock class.
        seed: Seed of the weights.

    Raises:
        FamilyError: It is not small, or transformers cannot build it.
    """
    quiet_transformers()
    loader = stock_class(architecture)
    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in loader(config).parameters())
        if size > _MOST_PARAMETERS:
            raise FamilyError(
                f"{architecture} keeps {size:,} parameters with small sizes: it has sizes not known"
            )
        torch.manual_seed(seed)
        config._attn_implementation = "eager"
        config._experts_implementation = "eager"  # the fused one takes no float64
        model = loader(config)
    except FamilyError:
        raise
    except Exception as error:  # whatever a model class raises
        raise FamilyError(f"transformers cannot build a small {architecture}: {first_line(error)}") from error
    _randomise(model, torch.Generator().manual_seed(seed))
    return model.eval().to(torch.float64)


@torch.no_grad()
def _randomise(model: Any, generator: torch.Generator) -> None:
    """Draw weights that keep activations near 1, so that attention is far from uniform."""
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim >= 2:
            width = 1.0 if "embed" in name else 1.4 / parameter.shape[-1] ** 0.5
            parameter.normal_(std=width, generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(std=0.3, generator=generator)
        else:
            parameter.uniform_(0.5, 1.5, generator=generator)
    model.tie_weights()


def inputs(model: Any, *, far: bool) -> dict[str, Any]:
    """Return fixed tokens; with ``far`` at positions far apart, with an explicit causal mask."""
    generator = torch.Generator().manual_seed(1)
    text = model.config.get_text_config()
    words = torch.tensor(ordinary_tokens(model.config))
    drawn = torch.randint(len(words), (1, _LENGTH), generator=generator)
    made: dict[str, Any] = {"input_ids": words[drawn]}
    taken = inspect.signature(model.forward).parameters
    if far and "position_ids" in taken:
        limit = getattr(text, "max_position_embeddings", None) or _FARTHEST
        steps = torch.linspace(0, 1, _LENGTH, dtype=torch.float64) ** 2 * (min(limit, _FARTHEST) - 1)
        made["position_ids"] = (steps.long() + torch.arange(_LENGTH)).clamp(max=limit - 1)[None]
        allowed = torch.ones(_LENGTH, _LENGTH, dtype=torch.bool).tril()
        mask = torch.zeros(_LENGTH, _LENGTH, dtype=torch.float64)
        made["attention_mask"] = mask.masked_fill(~allowed, torch.finfo(torch.float64).min)[None, None]
    if "use_cache" in taken:
        made["use_cache"] = False
    return made


@torch.inference_mode()
def logits(model: Any) -> Tensor:
    """Return a model's logits at near and at far positions, ``(2, tokens, vocabulary)``.

    Raises:
        FamilyError: It does not run.
    """
    try:
        return torch.cat([main_output(model(**inputs(model, far=far))) for far in (False, True)])
    except Exception as error:  # whatever a model raises
        raise FamilyError(f"a small {type(model).__name__} does not run: {first_line(error)}") from error
