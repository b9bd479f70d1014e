"""Steps of the optimiser that Accelerate wraps, or of DeepSpeed's engine, which has its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Stepper:
    """Steps of an optimiser that Accelerate wraps.

    Args:
        accelerator: Accelerate's.
        objective: What is trained, as Accelerate wrapped it.
        optimizer: Its optimiser, likewise.
        max_grad_norm: Gradients are clipped to this norm.
    """

    def __init__(self, accelerator: Any, objective: Any, optimizer: Any, max_grad_norm: float) -> None:
        self.accelerator = accelerator
        self.objective = objective
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm

    def fill_state(self) -> None:
        """Make every weight's state at the start: shards of a checkpoint are read into what is there.

        Weights that the first stage does not train would have none until the second.
        """
        optimizer = self.optimizer.optimizer
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for group in optimizer.param_groups:
            _forget_steps(optimizer, group["params"])

    def step(self, loss: float, *, matching: bool) -> tuple[float | None, bool]:
        """Change the weights, unless loss or gradients are not finite; fp16's scaler judges that itself.

        Args:
            loss: Of the whole step.
            matching: Whether only attention is trained.

        Returns:
            The gradients' norm before it was clipped, where it is known; and whether all was finite.
        """
        if matching:
            # Zeros that shards bring along must not count as steps of weights that do not move yet.
            for group in self.optimizer.param_groups:
                if not group["attention"]:
                    for parameter in group["params"]:
                        parameter.grad = None
        norm = self._clipped()
        finite = math.isfinite(loss) and (norm is None or math.isfinite(norm))
        if finite or self.accelerator.mixed_precision == "fp16":
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, finite

    def _clipped(self) -> float | None:
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.max_grad_norm)
        if norm is None:
            return None
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def weights(self) -> dict[str, Tensor]:
        """Gather all weights; empty on other processes than the main one."""
        state: dict[str, Tensor] | None = self.accelerator.get_state_dict(self.objective)
        return state or {}


class DeepSpeedStepper(Stepper):
    """The same by DeepSpeed's engine, whose optimiser keeps a part of the weights in float32 (ZeRO-1, -2)."""

    def fill_state(self) -> None:
        """Do nothing: DeepSpeed makes the state of every weight itself."""

    def step(self, loss: float, *, matching: bool) -> tuple[float | None, bool]:
        # The engine has stepped behind the last backward pass, unless the gradients were not finite.
        optimizer = self.optimizer.optimizer
        if matching:
            # Zero gradients must not count as steps of weights that do not move yet.
            for group in optimizer.optimizer.param_groups:
                if not group["attention"]:
                    _forget_steps(optimizer.optimizer, group["params"])
        finite = math.isfinite(loss) and not optimizer.overflow
        norm = self.objective.get_global_grad_norm()
        return None if norm is None else float(norm), finite

    def weights(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        module = self.objective.module
        exact = {
            name: safe_get_full_fp32_param(parameter)  # all processes together
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        if not self.accelerator.is_main_process:
            return {}
        return {
            name: value if exact.get(name) is None else exact[name]
            for name, value in module.state_dict().items()
        }


def _forget_steps(optimizer: Any, parameters: list[Any]) -> None:
    """Set an optimiser's counts of steps to 0, which correct the bias of its moments."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        if "step" in state:
            state["step"] = state["step"] * 0


def make_stepper(accelerator: Any, objective: Any, optimizer: Any, max_grad_norm: float) -> Stepper:
    """Make the stepper for how Accelerate was started; arguments as those of `Stepper`."""
    from accelerate.utils import DistributedType

    kind = DeepSpeedStepper if accelerator.distributed_type == DistributedType.DEEPSPEED else Stepper
    return kind(accelerator, objective, optimizer, max_grad_norm)
