"""Writing what a run has trained: a checkpoint folder like the one it began with, and what it cost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from gqkva_convert.checkpoint.adapters import ADAPTER_CONFIG
from gqkva_convert.checkpoint.folder import WEIGHTS_KEY, open_checkpoint
from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.checkpoint.publish import published_folder
from gqkva_convert.checkpoint.sidecars import MEASURED, REPORT, TRAINING, module_weights
from gqkva_convert.errors import TrainingError
from gqkva_convert.records.report import describe_files, read_report
from gqkva_convert.records.training import Training
from gqkva_convert.uptraining.job import Job
from gqkva_convert.uptraining.trainable import add_lora

_WEIGHTS = (".safetensors", ".bin", ".index.json")


def write_result(job: Job, model: Any, weights: dict[str, Tensor], training: Training) -> None:
    """Write a trained checkpoint, which appears under its name when it is complete.

    Args:
        job: The run.
        model: The model that training began with, freshly loaded, on a CPU.
        weights: Trained weights by name.
        training: What is reported of the run.

    Raises:
        TrainingError: The weights are not those of the model.
    """
    settings = job.settings
    trained = add_lora(model, settings.lora_rank) if settings.train == "lora" else model
    missing, unexpected = trained.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = [name for name in missing if name.removeprefix("base_model.model.") not in tied]
    if missing or unexpected:
        raise TrainingError(f"trained weights do not fit the model: {[*missing, *unexpected][0]}")
    if settings.train == "lora":
        model = trained.merge_and_unload()
    checkpoint = open_checkpoint(job.folder)
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values()}
    stored = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    import torch

    common = [stored[dtype] for dtype in dtypes if dtype in stored]
    model = model.to(getattr(torch, common[0] if len(common) == 1 else "float32"))
    with published_folder(job.out, overwrite=job.overwrite) as folder:
        model.save_pretrained(folder)
        of_modules = module_weights(job.folder)
        for path in sorted(job.folder.rglob("*")):
            name = path.relative_to(job.folder)
            hidden = any(part.startswith(".") for part in name.parts)
            is_stale = path.name.endswith(_WEIGHTS) and name.as_posix() not in of_modules
            stale = is_stale or str(name) in {*MEASURED, ADAPTER_CONFIG}
            if path.is_file() and not stale and not hidden:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
        if WEIGHTS_KEY in checkpoint.config:  # the result's weights have their usual name
            kept = {name: value for name, value in checkpoint.config.items() if name != WEIGHTS_KEY}
            write_json(folder / "config.json", kept)
        _report(folder, training)


def _report(folder: Path, training: Training) -> None:
    path = folder / REPORT
    if not path.is_file():
        write_json(folder / TRAINING, training.to_dict())
        return
    report = read_report(folder)
    changes: dict[str, Any] = {
        "files": describe_files(open_checkpoint(folder)),
        "verification": None,
        "uptraining": training,
    }
    if report.uptraining is not None:
        changes["uptraining_before"] = [*report.uptraining_before, report.uptraining]
    path.unlink()  # a copy may be read-only
    write_json(path, report.model_copy(update=changes).to_dict())
