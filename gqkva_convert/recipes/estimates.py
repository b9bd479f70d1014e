"""Estimates for a recipe: sizes from headers, time and memory from earlier measurements.

An estimate tells minutes from days. It names its source; what cannot be known before a run is not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.checkpoint.hub import BUILT_IN, is_hub_id
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.conversion.init import init
from gqkva_convert.conversion.init_processors import default_config
from gqkva_convert.errors import RecipeError
from gqkva_convert.recipes.schema import Gpus
from gqkva_convert.uptraining.settings import choose_settings

# Bytes a second that a conversion from weights alone copies and merges at (docs/benchmarks.md).
_CONVERT_RATE = 1.5e9
# Share of a GPU's peak that forward passes and training reach.
_UTILISATION = 0.4
# Bytes a parameter in training: float32 weights, gradients and two moments of AdamW.
_TRAINED_BYTES = 16
# Of those, what a checkpoint keeps, and how many there are at once unless the run says otherwise.
_KEPT_BYTES, _KEPT = 12, 3
# Tokens a sequence, unless said otherwise.
_LENGTH = 2048


@dataclass(frozen=True)
class Speed:
    """Operations a second, and how they are known."""

    operations: float
    source: str


@dataclass(frozen=True)
class Size:
    """A model's size.

    Attributes:
        row: Positions of one sample, if all samples have the same number: patches of an image.
        longest: Most positions of a sequence, where that is known.
        assumed: Whether its headers could not be read.
    """

    parameters: int
    nbytes: int
    row: int | None = None
    longest: int | None = None
    assumed: bool = False


@dataclass(frozen=True)
class Estimate:
    """Time, memory and bytes of a step; None if unknown.

    Attributes:
        seconds: On the machine that `speed_of` describes.
        memory_bytes: Weights, and what training keeps beside them; not activations.
        disk_bytes: Bytes that it writes.
        note: Unknowns, or the basis of the numbers.
        download_bytes: Weights that it is the first to fetch from the Hub.
    """

    seconds: float | None = None
    memory_bytes: float | None = None
    disk_bytes: float | None = None
    note: str = ""
    download_bytes: float | None = None


Values = Mapping[str, Any]
# Estimates a command from its options by name, its model's size, and those of other models that it reads.
Estimator = Callable[[Values, Size, "list[Size]", Speed], Estimate]


def speed_of(gpus: Gpus | None) -> Speed:
    """Return the speed of this machine's GPUs or of those a recipe asks for, as published; else measure it.

    Raises:
        RecipeError: The recipe asks for GPUs whose speed is not known.
    """
    import time

    import torch

    from gqkva_convert.uptraining.engine.hardware import peak_flops, peak_of

    if torch.cuda.is_available():
        peak, count = peak_flops(torch.device("cuda")), torch.cuda.device_count()
        if peak is not None:
            return _share(peak, count, torch.cuda.get_device_name())
    if gpus is not None:
        peak = peak_of(gpus.name)
        if peak is None:
            raise RecipeError(f"gpus.name {gpus.name!r}: its speed is not known here; name another or none")
        return _share(peak, gpus.count, f"{gpus.name}, which the recipe asks for,")
    side = 1024
    matrix = torch.randn(side, side)
    matrix @ matrix
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < 0.1:
        matrix @ matrix
        rounds += 1
    rate = 2 * side**3 * rounds / (time.perf_counter() - start)
    return Speed(rate * _UTILISATION, f"this CPU at {_UTILISATION:.0%} of {rate / 1e9:.0f} GFLOP/s")


def _share(peak: float, count: int, name: str) -> Speed:
    return Speed(peak * count * _UTILISATION, f"{count} x {name} at {_UTILISATION:.0%} of its peak")


def fresh_size(arguments: Mapping[str, Any]) -> Size:
    """Return the size of a model that `init` makes.

    Raises:
        GqkvaError: It cannot be made.
    """
    tokenizer, config = arguments.get("tokenizer"), arguments.get("config")
    # A tokenizer on the Hub, or of a step before, is not there yet: the vocabulary is the configuration's.
    is_here = (
        tokenizer is not None
        and not is_hub_id(tokenizer)
        and (tokenizer == BUILT_IN or Path(tokenizer).exists())
    )
    facts = init(**{**arguments, "tokenizer": tokenizer if is_here else None, "dry_run": True})
    given = {} if config is None else read_json(config)
    whole = default_config(FAMILIES[arguments["architecture"]]) | given
    assumed = tokenizer is not None and not is_here
    return Size(facts["parameters"], facts["bytes"], *positions_of(whole), assumed)


def positions_of(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return the patches of an image, and the most positions of a sequence."""
    side, patch = config.get("image_size"), config.get("patch_size")
    patches = (side // patch) ** 2 if isinstance(side, int) and isinstance(patch, int) else None
    longest = config.get("max_position_embeddings")
    return patches, longest if isinstance(longest, int) else None


def estimate_fresh(values: Values, model: Size, others: list[Size], speed: Speed) -> Estimate:
    """Estimate a model that is made from nothing."""
    return Estimate(memory_bytes=model.nbytes, disk_bytes=model.nbytes, note="short")


def estimate_conversion(values: Values, model: Size, others: list[Size], speed: Speed) -> Estimate:
    """Estimate a conversion, with calibration data or without."""
    seconds, data = model.nbytes / _CONVERT_RATE, values.get("calibration")
    if data is None:
        return Estimate(seconds, 0.2e9, model.nbytes)
    tokens = (values["calibration_samples"] or 128) * _length(values["calibration_length"], model)
    # One pass for moments, one for calls of blocks, one over candidates.
    seconds += 3 * 2 * model.parameters * tokens / speed.operations
    is_fitted = "layerwise" in str(values["refine"])
    note = "without the layer-wise fit: minutes a layer" if is_fitted else ""
    return Estimate(seconds, model.nbytes, model.nbytes, note)


def estimate_reading(values: Values, model: Size, others: list[Size], speed: Speed) -> Estimate:
    """Estimate what looks at a model as a conversion does and writes nothing of its size."""
    return replace(estimate_conversion(values, model, others, speed), disk_bytes=0)


def estimate_evaluation(values: Values, model: Size, others: list[Size], speed: Speed) -> Estimate:
    """Estimate a measurement on data."""
    memory = sum(size.nbytes for size in (model, *others))
    if values["samples"] is None or values["data"] is None:
        return Estimate(None, memory, None, "as long as its data")
    tokens = values["samples"] * _length(values["length"], model)
    operations = sum(2 * size.parameters * tokens for size in (model, *others))
    return Estimate(operations / speed.operations, memory)


def estimate_training(values: Values, model: Size, others: list[Size], speed: Speed) -> Estimate:
    """Estimate a training run."""
    settings = choose_settings(values["settings"], values)
    memory = _TRAINED_BYTES * model.parameters + sum(size.nbytes for size in others)
    disk = model.nbytes + _KEPT * _KEPT_BYTES * model.parameters
    tokens = settings.token_budget
    if tokens is None and settings.samples is not None and model.row is not None:
        tokens = settings.samples * model.row
    if tokens is None:
        return Estimate(None, memory, disk, "as long as its budget")
    each = 6 * model.parameters + sum(2 * size.parameters for size in others)
    return Estimate(each * tokens * settings.num_train_epochs / speed.operations, memory, disk)


def _length(wanted: Any, model: Size) -> int:
    """Return the positions of a sample."""
    if model.row is not None:
        return model.row
    longest = model.longest or _LENGTH
    return min(int(wanted), longest) if wanted is not None else min(_LENGTH, longest)
