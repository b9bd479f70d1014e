"""The circumstances that records name: date, machine, and versions of packages."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on, without importing them."""
    found = {"python": platform.python_version()}
    for package in ("gqkva-convert", "numpy", "safetensors", "transformers", "torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def describe_run() -> dict[str, Any]:
    """Return the versions, machine and date of a measurement."""
    return {
        "versions": versions(),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def machine() -> str:
    """Describe the GPUs that torch sees, or else the CPU and its cores."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not torch.cuda.is_available():
        return f"{cpu_name()}, {cores} cores"
    count = torch.cuda.device_count()
    return f"{f'{count} x ' if count > 1 else ''}{torch.cuda.get_device_name()}"


def cpu_name() -> str:
    """Return the name of the CPU."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
