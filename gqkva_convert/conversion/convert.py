"""`gqkva convert`: plan, write, check, publish."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.dtypes import FLOATS
from gqkva_convert.checkpoint.folder import SAFETENSORS, Checkpoint, open_checkpoint
from gqkva_convert.checkpoint.hub import Located, locate, peek
from gqkva_convert.checkpoint.jsonfile import read_json, write_json
from gqkva_convert.checkpoint.publish import published_folder, scratch_folder
from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.checkpoint.sidecars import REPORT, carried_files, copy_files
from gqkva_convert.conversion.config import converted_config, write_config
from gqkva_convert.conversion.execute import write_shards
from gqkva_convert.conversion.model import SourceModel, open_model, read_model
from gqkva_convert.conversion.plan import Plan, make_plan
from gqkva_convert.conversion.report import count_parameters, describe_source, make_report, provenance
from gqkva_convert.conversion.shards import Shard, make_shards, parse_size
from gqkva_convert.conversion.steps import Steps, make_steps, tied_copies
from gqkva_convert.errors import (
    CheckpointError,
    GqkvaError,
    OutputError,
    VerificationError,
)
from gqkva_convert.heads import Variant

Progress = Callable[[int], None]

# What the scratch folder was begun for; another conversion must not continue it.
_RUN = ".gqkva-run.json"


@dataclass(frozen=True)
class Conversion:
    """A conversion ready to be written; plain data, nothing is on disk yet.

    Attributes:
        located: The source.
        model: Its checkpoint and facts.
        plan: What happens to its heads.
        steps: One step per output tensor.
        shards: Output files.
        target: Output folder.
    """

    located: Located
    model: SourceModel
    plan: Plan
    steps: Steps
    shards: tuple[Shard, ...]
    target: Path

    def to_dict(self) -> dict[str, Any]:
        """The whole conversion as JSON data, for `--dry-run --json`."""
        return {
            "source": self.located.name,
            "target": str(self.target),
            "plan": self.plan.to_dict(),
            "shards": {
                shard.file_name: [
                    {
                        "name": step.name,
                        "operation": step.operation,
                        "dtype": step.dtype,
                        "shape": list(step.shape),
                    }
                    for step in shard.steps
                ]
                for shard in self.shards
            },
            "dropped": self.steps.dropped,
            "bytes": self.steps.nbytes,
            "parameters": count_parameters(step.shape for step in self.steps.steps),
            "source_bytes": self.model.checkpoint.nbytes,
            "source_parameters": count_parameters(
                tensor.shape for tensor in self.model.checkpoint.tensors.values()
            ),
        }


def prepare(
    model: str | Path,
    out: str | Path | None = None,
    *,
    gq: int | None = None,
    gkv: int | None = None,
    blocks: str | None = None,
    merge: str = "closed-form",
    grouping: str = "neighbour",
    seed: int = 0,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    revision: str | None = None,
) -> Conversion:
    """Plan a conversion without writing anything; takes the arguments of `convert`."""
    variant = Variant(gq, gkv)
    max_shard_bytes = parse_size(max_shard_size) if max_shard_size else None

    def planned(source: SourceModel) -> Plan:
        return make_plan(
            source, variant, blocks=blocks, grouping=grouping, merge=merge, seed=seed, dtype=dtype
        )

    headers = peek(str(model), revision)
    if headers is not None:
        remote = read_model(headers)
        make_steps(remote, planned(remote))  # whatever can be refused is refused before the download
    located = locate(str(model), revision)
    source = open_model(located.folder)
    plan = planned(source)
    target = Path(out) if out is not None else Path(f"{_base_name(located)}-{plan.variant}")
    return planned_conversion(located, source, plan, target, max_shard_bytes)


def planned_conversion(
    located: Located, source: SourceModel, plan: Plan, target: Path, max_shard_bytes: int | None
) -> Conversion:
    """Everything a plan will do to a source; writes nothing.

    Args:
        located: The source.
        source: The same, opened.
        plan: What happens to its heads.
        target: Output folder.
        max_shard_bytes: Largest output file; None keeps the source's division.

    Raises:
        GqkvaError: The plan does not fit the source, or the target is or holds it.
    """
    with TensorReader(source.checkpoint.files, pickled=source.checkpoint.pickled) as reader:
        tied = tied_copies(source, reader)
    steps = make_steps(source, plan, tied)
    converted_config(source, plan)  # refuses classes that have no grouped form
    shards = make_shards(steps, source.checkpoint.files, max_shard_bytes)
    if target.resolve() == located.folder.resolve() or target.resolve() in located.folder.resolve().parents:
        raise OutputError(f"{target} is or holds the source; choose another folder")
    return Conversion(located, source, plan, steps, shards, target)


def convert(
    model: str | Path,
    out: str | Path | None = None,
    *,
    gq: int | None = None,
    gkv: int | None = None,
    blocks: str | None = None,
    merge: str = "closed-form",
    grouping: str = "neighbour",
    seed: int = 0,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Merge a checkpoint's heads and write the result.

    The result is a stock checkpoint where the family's stock architecture can hold it. Any other carries its
    own modelling file: it loads with ``trust_remote_code=True``, and without where gqkva is imported.

    Memory stays at a few tensors whatever the model's size. An interrupted conversion of several
    shards goes on from its last complete one when the same call is made again.

    Args:
        model: Checkpoint folder or Hub id.
        out: Folder to write; by default ``<model>-<variant>`` in the working directory.
        gq: Query heads to keep; None keeps all.
        gkv: Key/value heads to keep; None keeps all.
        blocks: Kinds of attention to convert, such as ``"decoder"``; None for all (see `make_plan`).
        merge: How heads become one, a name of docs/methods.md.
        grouping: Which heads become one: ``neighbour`` or ``random``.
        seed: Seed of ``random``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None keeps each tensor's dtype.
        max_shard_size: Largest output file, such as ``"2GB"``; None keeps the source's division.
        revision: Branch, tag or commit of a Hub id.
        overwrite: Replace an existing checkpoint folder, which stays until the new one is complete.
        progress: Called with the number of output bytes just written.

    Returns:
        The folder written.

    Raises:
        GqkvaError: With a message for the user; nothing stands under ``out`` then.
    """
    conversion = prepare(
        model,
        out,
        gq=gq,
        gkv=gkv,
        blocks=blocks,
        merge=merge,
        grouping=grouping,
        seed=seed,
        dtype=dtype,
        max_shard_size=max_shard_size,
        revision=revision,
    )
    write(conversion, overwrite=overwrite, progress=progress)
    return conversion.target


def write(conversion: Conversion, *, overwrite: bool = False, progress: Progress | None = None) -> None:
    """Write a prepared conversion and publish it under its name."""
    started = time.perf_counter()
    source = describe_source(conversion.located, conversion.model.checkpoint)
    with published_folder(conversion.target, overwrite=overwrite) as folder:
        _take_over(folder, conversion, source)
        carried, left_behind = carried_files(conversion.located.folder)
        _check_space(folder, conversion, carried)
        copy_files(carried, folder)
        write_shards(
            conversion.model.checkpoint,
            conversion.plan,
            conversion.shards,
            folder,
            provenance(source, conversion.plan),
            progress or (lambda _: None),
        )
        written = time.perf_counter()
        write_config(conversion.model, conversion.plan, folder)
        if len(conversion.shards) > 1:
            write_json(folder / f"{SAFETENSORS}.index.json", _index(conversion.shards))
        output = check_folder(folder, conversion.steps)
        timings = {"write": written - started, "total": time.perf_counter() - started}
        report = make_report(source, output, conversion.plan, conversion.steps, left_behind, timings)
        write_json(folder / REPORT, report)
        (folder / _RUN).unlink()


def check_folder(folder: Path, steps: Steps) -> Checkpoint:
    """Reopen what was written and compare it with the steps: every name, dtype and shape, nothing else.

    Raises:
        VerificationError: It differs.
    """
    try:
        checkpoint = open_checkpoint(folder)
    except CheckpointError as error:
        raise VerificationError(f"what was written does not open: {error}") from error
    expected = {step.name: (step.dtype, step.shape) for step in steps.steps}
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in checkpoint.tensors.items()}
    if expected != found:
        name = next(iter(sorted(expected.items() ^ found.items())))[0]
        raise VerificationError(
            f"{folder}: {name!r} should be {expected.get(name, 'absent')}, is {found.get(name, 'absent')}"
        )
    return checkpoint


def _base_name(located: Located) -> str:
    return located.folder.resolve().name if located.revision is None else located.name.rpartition("/")[2]


def _take_over(folder: Path, conversion: Conversion, source: dict[str, Any]) -> None:
    """Keep the complete shards of an interrupted run of the same conversion; clear away anything else."""
    identity = {
        "conversion": conversion.to_dict(),
        "source": source,
        "modified": {file.name: file.stat().st_mtime_ns for file in conversion.model.checkpoint.files},
        "provenance": provenance(source, conversion.plan),
    }
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    marker = folder / _RUN
    try:
        same = marker.is_file() and read_json(marker) == {"fingerprint": fingerprint}
    except GqkvaError:
        same = False
    keep = {shard.file_name for shard in conversion.shards} if same else set()
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in keep and path != marker:
            path.unlink()
    write_json(marker, {"fingerprint": fingerprint})


def _check_space(folder: Path, conversion: Conversion, carried: dict[str, Path]) -> None:
    missing = [shard for shard in conversion.shards if not (folder / shard.file_name).exists()]
    needed = sum(shard.nbytes for shard in missing) + sum(path.stat().st_size for path in carried.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{conversion.target} needs {needed / 1e9:.2f} GB, only {free / 1e9:.2f} GB are free there; "
            "free some or choose another folder"
        )


def kept_shards(target: Path) -> int:
    """How many complete shards an interrupted run has left beside ``target``."""
    scratch = scratch_folder(target)
    return len(list(scratch.glob("*.safetensors"))) if scratch.is_dir() else 0


def _index(shards: tuple[Shard, ...]) -> dict[str, Any]:
    weight_map = {step.name: shard.file_name for shard in shards for step in shard.steps}
    total = sum(shard.nbytes for shard in shards)
    parameters = count_parameters(
        step.shape for shard in shards for step in shard.steps if step.dtype in FLOATS
    )
    return {
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
