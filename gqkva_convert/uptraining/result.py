"""Writing what a run has trained: a checkpoint folder like the one it began with, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from gqkva_convert.architectures import Family
from gqkva_convert.checkpoint.dtypes import FLOATS
from gqkva_convert.checkpoint.folder import WEIGHTS_KEY, Checkpoint, open_checkpoint
from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.checkpoint.publish import published_folder
from gqkva_convert.checkpoint.sidecars import REPORT, TRAINING, carried_files, copy_files
from gqkva_convert.errors import TrainingError
from gqkva_convert.records.report import describe_files, read_report
from gqkva_convert.records.training import Training
from gqkva_convert.source.model import family_of, open_model
from gqkva_convert.source.tensors import source_weights
from gqkva_convert.uptraining.job import Job
from gqkva_convert.uptraining.trainable import add_lora

# The first checkpoints' words for a norm's tensors, and today's.
_NORM_TENSORS = {"gamma": "weight", "beta": "bias"}


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
    source = open_checkpoint(job.folder)
    _restore_dtypes(model, source)
    with published_folder(job.out, overwrite=job.overwrite) as folder:
        model.save_pretrained(folder, state_dict={**model.state_dict(), **_unread(model, job.folder)})
        # Training changes weights alone. transformers would name the dtype of the first of them.
        config = {name: value for name, value in source.config.items() if name != WEIGHTS_KEY}
        write_json(folder / "config.json", config)
        carried, _ = carried_files(job.folder, source.files)
        copy_files(carried, folder)
        _report(folder, job.folder, training)


def _unread(model: Any, folder: Path) -> dict[str, Tensor]:
    """Return the weights of a folder that the model does not have: heads and poolers of other classes."""
    import torch

    source = open_model(folder)
    held = {_bare(name, source.family) for name in _saved(model)}
    found = {}
    with source.checkpoint.reader() as reader:
        for tensor in source_weights(source):
            if _bare(tensor.name, source.family) not in held and tensor.dtype in FLOATS:
                data = torch.from_numpy(reader.read(tensor))
                found[tensor.name] = data.view(getattr(torch, FLOATS[tensor.dtype])).view(tensor.shape)
    return found


def _saved(model: Any) -> dict[str, Tensor]:
    """Return the tensors of a model under the names that they are saved by."""
    from transformers.core_model_loading import revert_weight_conversion

    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    saved: dict[str, Tensor] = revert_weight_conversion(model, held)
    return saved


def _restore_dtypes(model: Any, source: Checkpoint) -> None:
    """Give each tensor of a float32 model the dtype that it is stored in; another stays in float32."""
    import torch

    family = family_of(source.config, source.folder)
    stored = {_bare(name, family): tensor.dtype for name, tensor in source.tensors.items()}
    for name, value in _saved(model).items():
        dtype = FLOATS.get(stored.get(_bare(name, family), ""))
        if dtype is not None and value.is_floating_point():
            value.data = value.data.to(getattr(torch, dtype))


def _bare(name: str, family: Family) -> str:
    """Return a stored name without the base model's prefix, and with today's words for a norm's tensors."""
    prefix = next((prefix for prefix in family.prefixes if name.startswith(prefix)), "")
    module, _, kind = name.removeprefix(prefix).rpartition(".")
    return f"{module}.{_NORM_TENSORS.get(kind, kind)}"


def _report(folder: Path, source: Path, training: Training) -> None:
    if not (source / REPORT).is_file():
        write_json(folder / TRAINING, training.to_dict())
        return
    report = read_report(source)
    changes: dict[str, Any] = {
        "files": describe_files(open_checkpoint(folder)),
        "verification": None,
        "uptraining": training,
    }
    if report.uptraining is not None:
        changes["uptraining_before"] = [*report.uptraining_before, report.uptraining]
    write_json(folder / REPORT, report.model_copy(update=changes).to_dict())
