"""Bytes of weights and caches, bytes that a decoding step reads, peak memory and free memory."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of the storages behind tensors, each once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def weight_bytes(model: Any) -> int:
    """Count the bytes of a model's parameters and buffers."""
    return storage_bytes([*model.parameters(), *model.buffers()])


def bytes_read(model: Any, run: Callable[[], object]) -> int:
    """Count the bytes of the weights that one run of a model reads.

    Every module that the run calls reads all its own parameters, except tables of embeddings, of which a few
    rows are read.
    """
    called: dict[int, int] = {}

    def note(module: torch.nn.Module, *_: object) -> None:
        if not isinstance(module, torch.nn.Embedding):
            called.update((weight.data_ptr(), weight.nbytes) for weight in module.parameters(recurse=False))

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return sum(called.values())


class PeakMemory:
    """Peak memory of a piece of work beyond the memory held when it begins.

    On a GPU by its allocator's count. On a CPU by the process's resident memory, whose peak Linux can forget
    (``/proc/self/clear_refs``); what fits into memory that the process holds already is not seen there.
    Nothing is measured on other systems.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.base: int | None = 0

    def begin(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.base = torch.cuda.memory_allocated(self.device)
            return
        if sys.platform == "linux":
            _give_back_freed_memory()
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.base = None
        else:
            self.base = _status("VmRSS")

    def growth(self) -> int | None:
        """Return the peak bytes since `begin` less those held then; None if unknown."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - (self.base or 0)
        return None if self.base is None else max(_status("VmHWM") - self.base, 0)


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device; None if the system does not report it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    if found is None:
        return None
    free = int(found[1]) * 1024
    try:  # a container's own limit
        limit = int((_CGROUP / "memory.max").read_text())
        return min(free, limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        return free


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None, f"{_STATUS} has no {name}"
    return int(found[1]) * 1024


def _give_back_freed_memory() -> None:
    """Ask the C library to return what was freed, so that the next growth is not hidden in it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's
        trim(0)
