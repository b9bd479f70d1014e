"""Peak memory of losses over a large vocabulary, in chunks and whole."""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine

from gqkva_convert.uptraining.objectives.losses import Head, chunked_losses, task_loss, teacher_divergence

_BOTH = {"task": 1.0, "kl": 1.0}


def memory(arguments: argparse.Namespace, results: dict[str, Any], save: Any) -> None:
    """Measure the peak memory of losses over a vocabulary of 128k tokens, with whole logits and in chunks."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    positions, width, vocabulary = (8192, 2048, 128_000) if device.type == "cuda" else (2048, 256, 128_000)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden = torch.randn(positions, width, device=device, dtype=dtype, requires_grad=True)
    theirs = torch.randn(positions, width, device=device, dtype=dtype)
    weight = torch.randn(vocabulary, width, device=device, dtype=dtype).mul_(0.02).requires_grad_(True)
    labels = torch.randint(vocabulary, (positions,), device=device)
    teacher = Head(weight.detach())

    def losses(logits: Any, span: slice) -> dict[str, Any]:
        with torch.no_grad():
            wanted = teacher.logits(theirs[span])
        return {"task": task_loss(logits, labels[span]), "kl": teacher_divergence(logits, wanted, 1.0)}

    found = {}
    for name, rows in (("chunks", None), ("whole", positions)):
        peak = _peak(
            lambda rows=rows: chunked_losses(hidden, Head(weight), losses, _BOTH, rows)[0].backward()
        )
        found[name] = peak
        weight.grad = hidden.grad = None
        print(name, f"{peak / 2**20:.0f} MiB", flush=True)
    one_copy = 4 * positions * vocabulary
    shape = {"positions": positions, "width": width, "vocabulary": vocabulary}
    results[device.type] = {
        **found,
        "logits_bytes": one_copy,
        **shape,
        "machine": describe_machine(Path.cwd()),
    }
    save()


def _peak(work: Any) -> int:
    """Return the most bytes that a function allocates beyond those allocated before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, highest, done = resident(), [0], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], resident())

    thread = threading.Thread(target=look)
    thread.start()
    work()
    done.set()
    thread.join()
    return highest[0] - before
