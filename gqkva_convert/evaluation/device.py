"""Devices on which models are measured."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gqkva_convert.errors import EvaluationError

if TYPE_CHECKING:
    import torch


def find_device(name: str) -> torch.device:
    """Return a device by its name.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or one GPU such as ``cuda:1``.

    Raises:
        EvaluationError: There is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise EvaluationError(f"--device {name}: choose auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and int(found[1] or 0) >= torch.cuda.device_count():
        raise EvaluationError(f"--device {name}: no such GPU here; --device cpu measures on the CPU")
    return torch.device("cuda:0" if name == "cuda" else name)
