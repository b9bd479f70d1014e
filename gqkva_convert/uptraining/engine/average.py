"""A running mean of weights, which is measured and kept instead of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


# By hand: torch's AveragedModel copies the whole model; this is a float32 mean of a process's shards alone.
class Average:
    """Exponential mean of a model's trained weights, of each process's part of them.

    Args:
        model: The model, as it is trained.
        decay: How much of the mean stays in each step.
    """

    def __init__(self, model: Any, decay: float) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.decay = decay
        self.steps = 0
        self.mean = [local_part(parameter).detach().clone().float() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of a step; early ones count for less, so that the mean does not lag."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, parameter in zip(self.mean, self.parameters, strict=True):
            mean.lerp_(local_part(parameter).float(), 1 - decay)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Replace the model's weights by the mean within a ``with`` block."""
        kept = [local_part(parameter).detach().clone() for parameter in self.parameters]
        try:
            for parameter, mean in zip(self.parameters, self.mean, strict=True):
                local_part(parameter).copy_(mean)
            yield
        finally:
            for parameter, value in zip(self.parameters, kept, strict=True):
                local_part(parameter).copy_(value)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "mean": self.mean}

    def restore(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for mean, stored in zip(self.mean, state["mean"], strict=True):
            mean.copy_(stored)


def local_part(parameter: Any) -> Tensor:
    """Return a parameter's part on this process: its shard where it is a DTensor."""
    local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local
