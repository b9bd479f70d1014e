"""Numbers summed over the processes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def summed(accelerator: Any, values: Sequence[Any]) -> list[float]:
    """Numbers, each summed over all processes; every process must ask at the same place.

    Args:
        accelerator: Accelerate's.
        values: Numbers, or tensors of one.
    """
    stacked = torch.stack([torch.as_tensor(value, dtype=torch.float64).cpu() for value in values])
    if accelerator.num_processes > 1:
        on_device = stacked.float() if accelerator.device.type == "mps" else stacked
        stacked = accelerator.reduce(on_device.to(accelerator.device), "sum").cpu()
    return [float(value) for value in stacked]
