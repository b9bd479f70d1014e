"""`gqkva convert`: plan, write, check, publish."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.checkpoint.dtypes import FLOATS
from gqkva_convert.checkpoint.folder import SAFETENSORS, Checkpoint, open_checkpoint
from gqkva_convert.checkpoint.hub import Located, locate, peek
from gqkva_convert.checkpoint.jsonfile import read_json, write_json
from gqkva_convert.checkpoint.publish import published_folder, scratch_folder
from gqkva_convert.checkpoint.sidecars import REPORT, carried_files, copy_files
from gqkva_convert.conversion.report import make_report, provenance
from gqkva_convert.errors import (
    CheckpointError,
    GqkvaError,
    OutputError,
    UsageError,
    VerificationError,
)
from gqkva_convert.planning.choose import complete_plan, request_plan
from gqkva_convert.plans.config import converted_config, write_config
from gqkva_convert.plans.file import read_plan
from gqkva_convert.plans.plan import Plan
from gqkva_convert.plans.request import Request, given_wishes, make_request
from gqkva_convert.progress import Progress, Stages, byte_stage, no_stages
from gqkva_convert.records.report import Source, count_parameters, describe_source
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.refinement.data_merges import DataMerges
from gqkva_convert.source.model import SourceModel, open_model, read_model
from gqkva_convert.steps.execute import write_shards
from gqkva_convert.steps.make import make_steps
from gqkva_convert.steps.others import tied_copies
from gqkva_convert.steps.shards import Shard, make_shards, parse_size
from gqkva_convert.steps.step import Steps
from gqkva_convert.units import human_bytes

# What the scratch folder was begun for; another conversion must not continue it.
_RUN = ".gqkva-run.json"


@dataclass(frozen=True)
class Draft:
    """A plan that has been checked against its source: every tensor accounted for, a configuration found.

    Attributes:
        plan: What happens to the source's heads.
        steps: One step per output tensor.
        config: The configuration of the result.
    """

    plan: Plan
    steps: Steps
    config: dict[str, Any]


def make_draft(model: SourceModel, plan: Plan, tied: dict[str, str]) -> Draft:
    """Check a plan against its source; reads no weights.

    Args:
        model: The source.
        plan: What happens to its heads.
        tied: What `tied_copies` found in the source.

    Raises:
        GqkvaError: The plan does not fit the source, or no class can hold the result.
    """
    return Draft(plan, make_steps(model, plan, tied), converted_config(model, plan))


@dataclass(frozen=True)
class Conversion:
    """A conversion ready to be written; plain data, nothing is on disk yet.

    Attributes:
        located: The source.
        model: Its checkpoint and facts.
        plan: What happens to its heads.
        steps: One step per output tensor.
        config: The configuration of the result.
        shards: Output files.
        target: Output folder.
        calibrated: The source with its calibration data, where the plan uses any.
        command: The arguments of ``gqkva`` that ask for this conversion.
    """

    located: Located
    model: SourceModel
    plan: Plan
    steps: Steps
    config: dict[str, Any]
    shards: tuple[Shard, ...]
    target: Path
    calibrated: CalibratedModel | None = None
    command: tuple[str, ...] = ()

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
    request: Request | None = None,
    plan: str | Path | None = None,
    max_shard_size: str | None = None,
    revision: str | None = None,
    stages: Stages = no_stages,
) -> Conversion:
    """Plan a conversion without writing anything.

    Args:
        model: Checkpoint folder or Hub id.
        out: Folder to write; by default ``<model>-<variant>`` in the working directory.
        request: What is asked; or
        plan: A plan file that `gqkva plan` wrote, perhaps edited.
        max_shard_size: Largest output file; None keeps the source's division.
        revision: Branch, tag or commit of a Hub id.
        stages: Shows progress of what looks at weights or data.
    """
    if (request is None) == (plan is None):
        raise UsageError("give either a plan or what to plan, --gkv for instance; not both")
    max_shard_bytes = parse_size(max_shard_size) if max_shard_size else None

    def first_draft(source: SourceModel, tied: dict[str, str]) -> Draft:
        if request is not None:
            return make_draft(source, request_plan(source, request), tied)
        return make_draft(source, read_plan(Path(str(plan)), source), tied)

    headers = peek(str(model), revision)
    if headers is not None:
        # Refused before the download. Steps name files and offsets, which are here only after it.
        first_draft(read_model(headers), {})
    located = locate(str(model), revision)
    source = open_model(located.folder)
    tied = tied_copies(source)
    draft = first_draft(source, tied)  # refused before the data are looked at
    chosen, calibrated, _ = complete_plan(located, source, draft.plan, request, stages)
    if chosen != draft.plan:
        draft = make_draft(source, chosen, tied)
    target = Path(out) if out is not None else Path(f"{_base_name(located)}-{chosen.variant}")
    wished = ["--plan", str(plan)] if request is None else request.arguments()
    wished += ["--max-shard-size", max_shard_size] if max_shard_size else []
    wished += ["--revision", located.revision] if located.revision else []
    command = ("convert", located.name, str(target), *wished)
    return plan_shards(located, source, draft, target, max_shard_bytes, calibrated, command)


def plan_shards(
    located: Located,
    source: SourceModel,
    draft: Draft,
    target: Path,
    max_shard_bytes: int | None,
    calibrated: CalibratedModel | None = None,
    command: tuple[str, ...] = (),
) -> Conversion:
    """Return a checked plan with its output files; writes nothing.

    Args:
        located: The source.
        source: The same, opened.
        draft: The checked plan.
        target: Output folder.
        max_shard_bytes: Largest output file; None keeps the source's division.
        calibrated: The source with the data that the plan names.
        command: The arguments of ``gqkva`` that ask for it.

    Raises:
        OutputError: The target is or holds the source.
    """
    shards = make_shards(draft.steps, source.checkpoint.files, max_shard_bytes)
    if target.resolve() == located.folder.resolve() or target.resolve() in located.folder.resolve().parents:
        raise OutputError(f"{target} is or holds the source; choose another folder")
    parts = draft.plan, draft.steps, draft.config
    return Conversion(located, source, *parts, shards, target, calibrated, command)


@overload
def convert(
    model: str | Path, out: str | Path | None = None, *, dry_run: Literal[True], **options: Any
) -> dict[str, Any]: ...


@overload
def convert(
    model: str | Path,
    out: str | Path | None = None,
    *,
    gkv: int | None = None,
    gq: int | None = None,
    kv_budget: str | None = None,
    plan: str | Path | None = None,
    blocks: str | None = None,
    merge: str | None = None,
    grouping: str | None = None,
    refine: str | None = None,
    calibration: str | Path | DataSettings | None = None,
    calibration_samples: int | None = None,
    calibration_length: int | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: Literal[False] = False,
    progress: Progress | None = None,
    stages: Stages = no_stages,
) -> Path: ...


# The first overload leaves the other options to the second.
def convert(  # type: ignore[misc]
    model: str | Path,
    out: str | Path | None = None,
    *,
    gkv: int | None = None,
    gq: int | None = None,
    kv_budget: str | None = None,
    plan: str | Path | None = None,
    blocks: str | None = None,
    merge: str | None = None,
    grouping: str | None = None,
    refine: str | None = None,
    calibration: str | Path | DataSettings | None = None,
    calibration_samples: int | None = None,
    calibration_length: int | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    stages: Stages = no_stages,
) -> Path | dict[str, Any]:
    """Merge a checkpoint's heads and write the result.

    The result is a stock checkpoint where the family's stock architecture can hold it. Any other carries its
    own modelling file: it loads with ``trust_remote_code=True``, and without where gqkva is imported.

    Without calibration data memory stays at a few tensors (one block's under ``closed-form``) whatever the
    model's size. An interrupted conversion of several shards goes on from its last complete one when the same
    call is made again.

    Args:
        model: Checkpoint folder or Hub id.
        out: Folder to write; by default ``<model>-<variant>`` in the working directory.
        gkv: Key/value heads to keep; None keeps all.
        gq: Query heads to keep; None keeps all.
        kv_budget: Key/value heads of all layers together, such as ``"25%"``; layers then differ.
        plan: A plan file, instead of the other options up to ``dtype``.
        blocks: Kinds of attention to convert, such as ``"decoder"``; None for all (see `make_plan`).
        merge: How heads become one, a name of docs/methods.md; None for ``auto`` with calibration data and
            ``closed-form`` without.
        grouping: Which heads become one; None for ``loss`` with calibration data and ``neighbour`` without.
        refine: ``"output"``, ``"layerwise"``, both or ``"none"``; None for ``output`` with calibration data.
        calibration: Data to run through the model: a file, a folder, a Hub id, or `DataSettings`.
        calibration_samples: Sequences or images of them; None for 128.
        calibration_length: Tokens a sequence; None for 2,048 or as many as the model reads.
        seed: Seed of everything drawn at random; None for 0.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None keeps each tensor's dtype.
        max_shard_size: Largest output file, such as ``"2GB"``; None keeps the source's division.
        revision: Branch, tag or commit of a Hub id.
        overwrite: Replace an existing checkpoint folder, which stays until the new one is complete.
        dry_run: Write nothing.
        progress: Called with the number of output bytes just written.
        stages: Begins a stage of progress: of what looks at weights or data, and of writing.

    Returns:
        The folder written; with ``dry_run`` JSON data: the plan and every file and tensor.

    Raises:
        GqkvaError: With a message for the user; nothing stands under ``out`` then.
        KeyboardInterrupt: It was interrupted; says how many shards are kept, where some are.
    """
    wishes = given_wishes(locals())
    if plan is not None and wishes:
        raise UsageError(f"--plan {plan} says everything itself; edit it instead of giving options beside it")
    conversion = prepare(
        model,
        out,
        request=make_request(**wishes) if plan is None else None,
        plan=plan,
        max_shard_size=max_shard_size,
        revision=revision,
        stages=stages,
    )
    if dry_run:
        return conversion.to_dict()
    try:
        write(conversion, overwrite=overwrite, progress=progress, stages=stages)
    except KeyboardInterrupt as error:
        kept = kept_shards(conversion.target)
        if kept:
            error.args = (
                f"{kept} of {len(conversion.shards)} shards are complete and kept; "
                "run the same command again to go on from there",
            )
        raise
    return conversion.target


def write(
    conversion: Conversion,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    stages: Stages = no_stages,
) -> None:
    """Write a prepared conversion and publish it under its name."""
    started = time.perf_counter()
    source = describe_source(conversion.located, conversion.model.checkpoint)
    data = DataMerges(conversion.plan, conversion.calibrated)
    with published_folder(conversion.target, overwrite=overwrite) as folder:
        _take_over(folder, conversion, source)
        carried, left_behind = carried_files(conversion.located.folder)
        _check_space(folder, conversion, carried)
        copy_files(carried, folder)
        data.prepare(stages)
        write_shards(
            conversion.model.checkpoint,
            conversion.plan,
            conversion.shards,
            folder,
            provenance(source, conversion.plan),
            byte_stage(stages, f"writing {conversion.target}", conversion.steps.nbytes, progress),
            data.merged,
        )
        written = time.perf_counter()
        write_config(conversion.model, conversion.plan, conversion.config, folder)
        if len(conversion.shards) > 1:
            write_json(folder / f"{SAFETENSORS}.index.json", _index(conversion.shards))
        output = check_folder(folder, conversion.steps)
        timings = {"write": written - started, "total": time.perf_counter() - started}
        report = make_report(
            conversion.command, source, output, conversion.plan, conversion.steps, left_behind, timings
        )
        write_json(folder / REPORT, data.noted(report, output).to_dict())
        (folder / _RUN).unlink()
    data.clear()


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


def _take_over(folder: Path, conversion: Conversion, source: Source) -> None:
    """Keep the complete shards of an interrupted run of the same conversion; clear away anything else."""
    identity = {
        "conversion": conversion.to_dict(),
        "source": source.to_dict(),
        "modified": {file.name: file.stat().st_mtime_ns for file in conversion.model.checkpoint.files},
        "provenance": provenance(source, conversion.plan),
        "calibration": conversion.calibrated.key if conversion.calibrated else None,
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
            f"{conversion.target} needs {human_bytes(needed)}, only {human_bytes(free)} are free there; "
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
