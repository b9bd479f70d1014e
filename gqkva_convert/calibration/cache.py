"""Calibration that is done once: sums kept under the hash of model, data and settings."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.calibration.moments import Moments, collect, sum_over_processes

if TYPE_CHECKING:
    from gqkva_convert.calibration.data import Batch

# Sums of an unfinished run are written this often, so that an interruption costs no more.
SAVE_SECONDS = 60.0
# One batch in so many is held out: not summed up, but used to compare what the sums have led to.
HELD_OUT_ONE_IN = 8


def cache_folder() -> Path:
    """Where sums are kept: ``GQKVA_CACHE``, else ``gqkva`` in the user's cache folder."""
    if "GQKVA_CACHE" in os.environ:
        return Path(os.environ["GQKVA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gqkva"


def split_held_out(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches to learn from, and at least one to compare on."""
    held = set(range(HELD_OUT_ONE_IN - 1, len(batches), HELD_OUT_ONE_IN)) or {len(batches) - 1}
    if len(batches) == 1:
        return list(batches), list(batches)
    return (
        [batch for number, batch in enumerate(batches) if number not in held],
        [batch for number, batch in enumerate(batches) if number in held],
    )


def calibration_key(settings: DataSettings, files: dict[str, Any], batches: Sequence[Batch]) -> str:
    """SHA-256 of everything that decides the sums.

    Args:
        settings: Settings of the data.
        files: What identifies the checkpoint's files.
        batches: The data itself, tokenised.
    """
    digest = hashlib.sha256(json.dumps([asdict(settings), files], sort_keys=True).encode())
    for batch in batches:
        for name in sorted(batch):
            digest.update(name.encode())
            digest.update(batch[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def calibrated_moments(
    load: Callable[[], Any], batches: Sequence[Batch], key: str, *, progress: Callable[[int], None]
) -> Moments:
    """The sums over batches, from the cache where they are there; resumes an interrupted run.

    In a distributed run (``accelerate launch``) each process takes its share of the batches.

    Args:
        load: Gives the model when it is needed.
        batches: Inputs to sum up.
        key: Name in the cache.
        progress: Called with 1 for each batch done.
    """
    from accelerate import PartialState

    state = PartialState()
    folder = cache_folder() / "calibration"
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f"{key}.safetensors"
    share = list(batches)[state.process_index :: state.num_processes]
    if done.is_file():
        progress(len(share))
        return Moments.load(done)
    partial = folder / f"{key}.{state.process_index}-of-{state.num_processes}.partial.safetensors"
    start = Moments.load(partial) if partial.is_file() else None
    if start is not None:
        progress(start.batches)
    saved = [time.monotonic()]

    def keep(moments: Moments) -> None:
        if time.monotonic() - saved[0] > SAVE_SECONDS:
            moments.save(partial)
            saved[0] = time.monotonic()

    moments = collect(load(), share, start=start, after_batch=keep, progress=progress)
    sum_over_processes(moments)
    if state.is_main_process:
        moments.save(done)
    state.wait_for_everyone()
    partial.unlink(missing_ok=True)
    return moments
