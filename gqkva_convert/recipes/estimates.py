"""What a recipe would take: sizes from headers, time and memory from what was measured elsewhere.

An estimate is there to tell minutes from days. It names what it rests on; what cannot be known before a run
is left open rather than guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.checkpoint.hub import BUILT_IN, is_fetched, is_hub_id, locate
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.conversion.init import init
from gqkva_convert.conversion.init_processors import default_config
from gqkva_convert.conversion.inspect import inspect
from gqkva_convert.errors import GqkvaError, RecipeError
from gqkva_convert.recipes.checks import training_values
from gqkva_convert.recipes.commands import CommandLine
from gqkva_convert.recipes.schema import Assumed, Gpus
from gqkva_convert.recipes.state import WRITES
from gqkva_convert.uptraining.settings import parse_count, parse_share

# Bytes a second that a conversion from weights alone copies and merges at (docs/benchmarks.md).
_CONVERT_RATE = 1.5e9
# Share of a GPU's peak that forward passes and training reach.
_UTILISATION = 0.4
# Bytes a parameter in training: float32 weights, gradients and two moments of AdamW.
_TRAINED_BYTES = 16
# Of those, what a checkpoint keeps, and how many there are at once unless the run says otherwise.
_KEPT_BYTES, _KEPT = 12, 3
# What `init` takes of its command's parameters.
_OF_INIT = ("architecture", "out", "gq", "gkv", "blocks", "config", "task", "tokenizer", "dtype")
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
        parameters: Their number.
        nbytes: Bytes of the weights.
        row: Positions of one sample, where every sample has as many: patches of a picture.
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
    """What a step would take; None for what is not known.

    Attributes:
        seconds: On the machine that `speed_of` describes.
        memory_bytes: Weights, and what training keeps beside them; not activations.
        disk_bytes: What it writes.
        note: What is not known, or what the numbers rest on.
        download_bytes: Weights that it is the first to fetch from the Hub.
    """

    seconds: float | None = None
    memory_bytes: float | None = None
    disk_bytes: float | None = None
    note: str = ""
    download_bytes: float | None = None


def speed_of(gpus: Gpus | None) -> Speed:
    """Of this machine's GPUs, or those that a recipe asks for, by their makers' figures; else measured here.

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
    return Speed(rate * _UTILISATION, f"this processor at {_UTILISATION:.0%} of {rate / 1e9:.0f} GFLOP/s")


def _share(peak: float, count: int, name: str) -> Speed:
    return Speed(peak * count * _UTILISATION, f"{count} x {name} at {_UTILISATION:.0%} of its peak")


def estimate_recipe(
    lines: tuple[CommandLine, ...], assume: Mapping[str, Assumed], speed: Speed
) -> list[Estimate]:
    """What each step would take; nothing is downloaded but headers of Hub models.

    Args:
        lines: The steps.
        assume: Sizes of Hub models by id, for where the Hub cannot be reached.
        speed: Of the machine.
    """
    sizes: dict[str, Size | None] = {}

    def size_of(name: Any) -> Size | None:
        if not isinstance(name, str):
            return None
        if name not in sizes:
            sizes[name] = _size(name, assume)
        return sizes[name]

    found = []
    there: set[Any] = set()  # made by a step, or fetched by one
    for line in lines:
        options = _all_options(line)
        model = _fresh(line) if line.step.command == "init" else size_of(_subject(line))
        written = options.get(WRITES.get(line.step.command, ""))
        if written is not None and line.step.command != "plan":
            sizes[str(written)] = model  # an upper bound: conversions only get smaller
            there.add(str(written))
        others = [options[name] for name in ("against", "teacher") if name in options]
        known = [size for size in map(size_of, others) if size is not None]
        estimate = _estimate(line.step.command, options, model, known, speed)
        if line.step.command != "inspect":  # which reads headers alone
            fetched = {name for name in (_subject(line), *others) if _is_to_fetch(name, options)} - there
            there |= fetched
            nbytes = sum(size.nbytes for size in map(size_of, fetched) if size is not None)
            estimate = replace(estimate, download_bytes=nbytes or None)
        found.append(estimate)
    return found


def _is_to_fetch(name: Any, options: Mapping[str, Any]) -> bool:
    """Whether a model is one of the Hub's that is not in the cache."""
    return isinstance(name, str) and is_hub_id(name) and not is_fetched(name, options.get("revision"))


def _subject(line: CommandLine) -> Any:
    """The model that a step is about: its first argument."""
    names = [p.name for p in line.command.params if p.param_type_name == "argument"]
    return line.step.options.get(names[0]) if names else None


def _size(name: str, assume: Mapping[str, Assumed]) -> Size | None:
    try:
        facts = inspect(name)
    except GqkvaError:
        if name in assume:
            return Size(assume[name].parameters, assume[name].bytes, assumed=True)
        return None
    folder = locate(name).folder if name == BUILT_IN else Path(name)
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    return Size(facts["parameters"]["total"], facts["bytes"], *_positions(config))


def _fresh(line: CommandLine) -> Size:
    """The size of a model that is made from nothing.

    Raises:
        RecipeError: It cannot be made.
    """
    known = {name: value for name, value in line.values().items() if name in _OF_INIT}
    # Some versions of typer make a path of it only when they call the command.
    known["config"] = None if known["config"] is None else Path(known["config"])
    # A tokenizer on the Hub, or of a step before, is not there yet: the vocabulary is the configuration's.
    tokenizer = known.pop("tokenizer")
    is_here = (
        tokenizer is not None
        and not is_hub_id(tokenizer)
        and (tokenizer == BUILT_IN or Path(tokenizer).exists())
    )
    try:
        facts = init(**known, tokenizer=tokenizer if is_here else None, dry_run=True)
        given = read_json(known["config"]) if known["config"] else {}
    except GqkvaError as error:
        raise RecipeError(f"step {line.step.name}: {error}") from error
    config = default_config(FAMILIES[known["architecture"]]) | given
    assumed = tokenizer is not None and not is_here
    return Size(facts["parameters"], facts["bytes"], *_positions(config), assumed)


def _positions(config: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Patches of a picture, and most positions of a sequence."""
    side, patch = config.get("image_size"), config.get("patch_size")
    patches = (side // patch) ** 2 if isinstance(side, int) and isinstance(patch, int) else None
    longest = config.get("max_position_embeddings")
    return patches, longest if isinstance(longest, int) else None


def _all_options(line: CommandLine) -> dict[str, Any]:
    """A step's options, for training with all its settings; null is as if left out."""
    options = {name: value for name, value in line.step.options.items() if value is not None}
    if line.step.command in ("uptrain", "pretrain", "teacher"):
        options = {**options, **training_values(options)}
    return options


def _estimate(
    command: str, options: dict[str, Any], model: Size | None, others: list[Size], speed: Speed
) -> Estimate:
    if command in ("inspect", "report", "compare"):
        return Estimate(note="short")
    if command in ("push", "demo", "teacher", "bench"):
        return Estimate(note="not estimated")
    if model is None:
        return Estimate(note="the model's size is not known here")
    note = "size assumed" if model.assumed else ""
    if command == "init":
        short = _joined("short", note)
        return Estimate(memory_bytes=model.nbytes, disk_bytes=model.nbytes, note=short)
    if command in ("convert", "plan", "export", "verify"):
        return _conversion(command, options, model, speed, note)
    if command == "evaluate":
        return _evaluation(options, model, others, speed, note)
    return _training(options, model, others, speed, note)


def _conversion(command: str, options: dict[str, Any], model: Size, speed: Speed, note: str) -> Estimate:
    seconds = model.nbytes / _CONVERT_RATE
    disk = 0 if command in ("plan", "verify") else model.nbytes
    if "calibration" not in options:
        return Estimate(seconds, 0.2e9, disk, note)
    tokens = int(options.get("calibration_samples", 128)) * _length(options.get("calibration_length"), model)
    # One pass for moments, one for calls of blocks, one over candidates.
    seconds += 3 * 2 * model.parameters * tokens / speed.operations
    if "layerwise" in str(options.get("refine", "")):
        note = _joined(note, "without the layer-wise fit: minutes a layer")
        return Estimate(seconds, model.nbytes, disk, note)
    return Estimate(seconds, model.nbytes, disk, note)


def _evaluation(
    options: dict[str, Any], model: Size, others: list[Size], speed: Speed, note: str
) -> Estimate:
    memory = sum(size.nbytes for size in (model, *others))
    samples = options.get("samples")
    if not isinstance(samples, int) or "data" not in options:
        return Estimate(None, memory, None, _joined(note, "as long as its data"))
    tokens = samples * _length(options.get("length"), model)
    operations = sum(2 * size.parameters * tokens for size in (model, *others))
    return Estimate(operations / speed.operations, memory, None, note)


def _training(options: dict[str, Any], model: Size, others: list[Size], speed: Speed, note: str) -> Estimate:
    memory = _TRAINED_BYTES * model.parameters + sum(size.nbytes for size in others)
    disk = model.nbytes + _KEPT * _KEPT_BYTES * model.parameters
    tokens = _tokens(options, model)
    if tokens is None:
        return Estimate(None, memory, disk, _joined(note, "as long as its budget"))
    each = 6 * model.parameters + sum(2 * size.parameters for size in others)
    tokens *= int(options.get("num_train_epochs", 1))
    return Estimate(each * tokens / speed.operations, memory, disk, note)


def _length(wanted: Any, model: Size) -> int:
    """Positions of a sample."""
    if model.row is not None:
        return model.row
    longest = model.longest or _LENGTH
    return min(int(wanted), longest) if wanted is not None else min(_LENGTH, longest)


def _tokens(options: dict[str, Any], model: Size) -> float | None:
    """The budget of a training run in positions, where it says."""
    whole = parse_count(options.get("tokens"))
    if isinstance(whole, (int, float)):
        return whole
    share, of = parse_share(options.get("alpha")), parse_count(options.get("pretraining_tokens"))
    if isinstance(share, (int, float)) and isinstance(of, (int, float)):
        return share * of
    rows = parse_count(options.get("samples"))
    return rows * model.row if isinstance(rows, (int, float)) and model.row is not None else None


def _joined(*notes: str) -> str:
    """Notes that say something, with commas between them."""
    return ", ".join(filter(None, notes))
