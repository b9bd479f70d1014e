"""The processes of a run as Accelerate started them, sums over them, and fused kernels where installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from gqkva_convert.errors import TrainingError, first_line
from gqkva_convert.modeling.log_levels import quiet_transformers
from gqkva_convert.uptraining.job import Job
from gqkva_convert.uptraining.rows.batches import StepPlan
from gqkva_convert.uptraining.settings import TrainingSettings


def start_processes() -> Any:
    """Join the processes that were started together (accelerate's ``PartialState``).

    Raises:
        TrainingError: The devices here cannot run what accelerate was told to, or DeepSpeed does not load.
    """
    import logging

    from accelerate import PartialState
    from accelerate.utils import DistributedType, parse_flag_from_env

    quiet_transformers()
    # It tells at every checkpoint that tied weights are stored once.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() not in ("no", ""):
        raise TrainingError("accelerate is set to compile the model; leave that out and give torch_compile")
    uses_deepspeed = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    if uses_deepspeed:
        try:
            import deepspeed  # noqa: F401
        except ImportError as error:
            raise TrainingError(
                f"DeepSpeed does not load ({first_line(error)}); pip install 'gqkva-convert[deepspeed]'"
            ) from error
    # One process prepares the rows of all; the others wait longer than the usual ten minutes.
    state = PartialState(cpu=_on_cpu(), timeout=timedelta(hours=6))
    if uses_deepspeed and state.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate starts DeepSpeed on accelerators only; its engine runs on CPUs as well.
        PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
    if state.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # Accelerate shards on accelerators only, and would silently not; torch shards over gloo as well.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return state


def _set_up_deepspeed(accelerator: Any, settings: TrainingSettings, plan: StepPlan) -> None:
    """Set in DeepSpeed's configuration what Accelerate's file does not.

    Raises:
        TrainingError: File or settings ask for what was not tried.
    """
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    zero = config.get("zero_optimization", {})
    if zero.get("stage", 0) not in (1, 2):
        raise TrainingError(
            f"DeepSpeed's ZeRO stage {zero.get('stage', 0)}: stages 1 and 2 are known to work; "
            "recipes/accelerate/fsdp2.yaml shards weights as stage 3 does, ddp.yaml nothing as stage 0"
        )
    for name in ("offload_optimizer", "offload_param"):
        if zero.get(name, {}).get("device", "none") != "none":
            raise TrainingError(f"DeepSpeed's {name} has not been tried; leave it out of accelerate's file")
    if settings.ema is not None:
        raise TrainingError(
            "ema is not kept under DeepSpeed, which has the exact weights to itself; leave it out"
        )
    config["train_micro_batch_size_per_gpu"] = plan.per_device
    config["gradient_accumulation_steps"] = plan.accumulation
    config["gradient_clipping"] = settings.max_grad_norm


def _on_cpu() -> bool:
    """Return whether to run on the CPU: asked for, or nothing else there."""
    import torch
    from accelerate.utils import parse_flag_from_env

    asked: bool = parse_flag_from_env("ACCELERATE_USE_CPU")
    return asked or not torch.accelerator.is_available()


def divide_steps(settings: TrainingSettings) -> StepPlan:
    """Divide the rows of a step over processes and passes.

    Raises:
        TrainingError: They cannot be.
    """
    processes, batch = start_processes().num_processes, settings.batch_size
    if batch % processes:
        raise TrainingError(
            f"batch_size {batch} cannot be divided over {processes} processes; "
            f"choose a multiple of {processes}"
        )
    per_device = settings.per_device_batch_size or batch // processes
    if (batch // processes) % per_device:
        raise TrainingError(
            f"batch_size {batch} over {processes} processes is {batch // processes} rows each, which "
            f"per_device_batch_size {per_device} does not divide"
        )
    if settings.mixup and per_device % 2:
        raise TrainingError(
            f"mixup mixes images two by two, and a pass has {per_device} rows; choose an even batch_size "
            "and per_device_batch_size"
        )
    return StepPlan(batch, per_device, processes)


def make_accelerator(plan: StepPlan, job: Job, *, leaves_out_weights: bool) -> Any:
    """Make Accelerate's object for a run.

    Args:
        plan: How rows are divided.
        job: The run; without a ``mixed_precision`` it is what Accelerate was started with.
        leaves_out_weights: Whether some steps give some weights no gradient.

    Raises:
        TrainingError: A tracker is not installed, or the device does not take the precision.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin

    settings, report_to = job.settings, job.report_to
    _require_trackers(report_to)
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    uses_deepspeed = PartialState().distributed_type == DistributedType.DEEPSPEED
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if leaves_out_weights else []
    try:
        accelerator = Accelerator(
            cpu=_on_cpu() and not uses_deepspeed,  # or it would leave DeepSpeed out
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=plan.accumulation, sync_with_dataloader=False
            ),
            log_with=list(report_to) or None,
            project_dir=str(job.run.path),
            kwargs_handlers=handlers,
        )
    except (ValueError, ImportError) as error:
        raise TrainingError(f"accelerate does not start: {first_line(error)}") from error
    if accelerator.device.type == "cpu" and accelerator.state.mixed_precision == "fp16":
        raise TrainingError("a CPU does not train in fp16; choose mixed_precision bf16 or no")
    if uses_deepspeed:
        _set_up_deepspeed(accelerator, settings, plan)
    return accelerator


def summed(accelerator: Any, values: Sequence[Any]) -> list[float]:
    """Sum each of some numbers over all processes; every process must ask at the same place.

    Args:
        accelerator: Accelerate's.
        values: Numbers, or tensors of one.
    """
    import torch

    stacked = torch.stack([torch.as_tensor(value, dtype=torch.float64).cpu() for value in values])
    if accelerator.num_processes > 1:
        on_device = stacked.float() if accelerator.device.type == "mps" else stacked
        stacked = accelerator.reduce(on_device.to(accelerator.device), "sum").cpu()
    return [float(value) for value in stacked]


def _require_trackers(names: tuple[str, ...]) -> None:
    """Refuse trackers whose package is missing: Accelerate would leave them out without a word."""
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = {str(each) for each in LoggerType if str(each) != "all"}
    there = {str(each) for each in get_available_trackers()}
    for name in names:
        if name in known - there:
            raise TrainingError(
                f"--report-to {name}: its package is not installed; install it or leave it out"
            )


def use_liger(model: Any) -> None:
    """Replace norms, rotations and feed-forward blocks by Liger's fused kernels, in place.

    Raises:
        TrainingError: liger-kernel is not there or does not know the model.
    """
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise TrainingError(
            "liger needs the package liger-kernel; pip install liger-kernel, or leave liger out"
        ) from error
    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise TrainingError(f"liger has no kernels for a {model.config.model_type}; leave liger out")
    # Losses over the vocabulary are computed in chunks here already.
    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
