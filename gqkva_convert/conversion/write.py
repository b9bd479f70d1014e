"""Write a prepared conversion, check it and publish it; reuse complete shards of an interrupted run."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.folder import SAFETENSORS, Checkpoint, open_checkpoint
from gqkva_convert.checkpoint.jsonfile import read_json, write_json
from gqkva_convert.checkpoint.publish import published_folder, require_space, scratch_folder
from gqkva_convert.checkpoint.sidecars import INPUT_CODE, REPORT, carried_files, copy_files
from gqkva_convert.conversion.prepare import Conversion
from gqkva_convert.conversion.report import make_report, provenance
from gqkva_convert.errors import CheckpointError, GqkvaError, VerificationError
from gqkva_convert.plans.config import write_config
from gqkva_convert.progress import Progress, Stages, byte_stage, no_stages
from gqkva_convert.records.report import Source, describe_source
from gqkva_convert.refinement.data_merges import DataMerges
from gqkva_convert.source.config_keys import is_grouped
from gqkva_convert.source.tensors import source_parameters
from gqkva_convert.steps.execute import write_shards
from gqkva_convert.steps.step import Steps

# What the scratch folder was begun for; another conversion must not continue it.
_RUN = ".gqkva-run.json"


def write(
    conversion: Conversion,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    stages: Stages = no_stages,
) -> None:
    """Write a prepared conversion and publish it under its name."""
    started = time.perf_counter()
    model = conversion.model
    source = describe_source(conversion.located, model.checkpoint, source_parameters(model))
    data = DataMerges(conversion.plan, conversion.calibrated)
    with published_folder(conversion.target, overwrite=overwrite) as folder:
        _take_over(folder, conversion, source)
        carried, left_behind = carried_files(conversion.located.folder, conversion.model.checkpoint.files)
        if "auto_map" in conversion.model.config and not is_grouped(conversion.model.config):
            left_behind["auto_map of config.json"] = INPUT_CODE
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
            write_json(folder / f"{SAFETENSORS}.index.json", _index(conversion))
        output = check_folder(folder, conversion.steps)
        timings = {"write": written - started, "total": time.perf_counter() - started}
        report = make_report(
            conversion.command,
            source,
            output,
            conversion.plan,
            conversion.steps,
            left_behind,
            conversion.parameters,
            timings,
            conversion.proof,
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
    require_space(folder, conversion.target, needed)


def kept_shards(target: Path) -> int:
    """Count the complete shards that an interrupted run left beside ``target``."""
    scratch = scratch_folder(target)
    return len(list(scratch.glob("*.safetensors"))) if scratch.is_dir() else 0


def _index(conversion: Conversion) -> dict[str, Any]:
    weight_map = {step.name: shard.file_name for shard in conversion.shards for step in shard.steps}
    return {
        "metadata": {
            "total_parameters": conversion.parameters,
            "total_size": sum(shard.nbytes for shard in conversion.shards),
        },
        "weight_map": dict(sorted(weight_map.items())),
    }
