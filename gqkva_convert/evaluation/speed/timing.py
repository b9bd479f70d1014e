"""Seconds of work on a device, and its memory bandwidth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

# Larger than any CPU's cache.
_CPU_BUFFER, _CUDA_BUFFER = 256 * 2**20, 2**30
_BANDWIDTH_ROUNDS = 7


class Clock:
    """Measures work on one device: events on a GPU, which see no wait of the CPU, else a clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def seconds(self, work: Callable[[], object]) -> float:
        """Measure the seconds of one call."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize(self.device)
            start.record(torch.cuda.current_stream(self.device))
            work()
            end.record(torch.cuda.current_stream(self.device))
            torch.cuda.synchronize(self.device)
            return float(start.elapsed_time(end)) / 1e3
        began = time.perf_counter()
        work()
        return time.perf_counter() - began


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile; of one value, itself."""
    if len(values) == 1:
        return (values[0],) * 3
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, middle, third


def measure_bandwidth(clock: Clock, dtype: torch.dtype) -> dict[str, float]:
    """Measure the bytes per second that the device reads, and reads and writes in copying.

    Returns:
        ``read``, by summing a buffer, and ``copy``, medians of a few rounds after one to warm up.
    """
    size = _CUDA_BUFFER if clock.device.type == "cuda" else _CPU_BUFFER
    source = torch.zeros(size // dtype.itemsize, dtype=dtype, device=clock.device)
    target = torch.empty_like(source)
    works: list[tuple[str, Callable[[], object], int]] = [
        ("read", source.sum, 1),
        ("copy", lambda: target.copy_(source), 2),
    ]
    found = {}
    for name, work, times in works:
        work()
        seconds = [clock.seconds(work) for _ in range(_BANDWIDTH_ROUNDS)]
        found[name] = times * source.nbytes / statistics.median(seconds)
    return found
