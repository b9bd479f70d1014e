"""Calibration that is done once: sums kept under the hash of model, data and settings."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.calibration.moments import (
    Moments,
    StoredMoments,
    check_finite,
    collect,
    sum_over_processes,
)
from gqkva_convert.checkpoint.cache import make_cache
from gqkva_convert.errors import OtherProcessError, OutputError

if TYPE_CHECKING:
    from gqkva_convert.calibration.data import Batch

# Sums of an unfinished run are written this often, so that an interruption costs no more.
SAVE_SECONDS = 60.0
# One sample in this many is held out: not summed up, but used to compare what the sums have led to.
HELD_OUT_ONE_IN = 8
# Changes when sums come to mean something else.
_FORMAT = 1
# Pieces of each weight file that tell it from another of the same shapes.
_PIECES, _PIECE_BYTES = 16, 64 << 10


def split_held_out(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Divide the rows of every batch into samples to learn from, and at least one in all to compare on."""
    total = sum(_rows(batch) for batch in batches)
    first = min(HELD_OUT_ONE_IN, total) - 1
    learned: list[Batch] = []
    held: list[Batch] = []
    before = 0
    for batch in batches:
        count = _rows(batch)
        chosen = [row for row in range(count) if (before + row) % HELD_OUT_ONE_IN == first]
        others = [row for row in range(count) if row not in chosen]
        for rows, side in ((others, learned), (chosen, held)):
            if rows:
                side.append({name: tensor[rows] for name, tensor in batch.items()})
        before += count
    return learned, held


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def calibration_key(
    settings: DataSettings, facts: dict[str, Any], files: Sequence[Path], batches: Sequence[Batch]
) -> str:
    """Hash everything that decides the sums.

    Args:
        settings: Settings of the data.
        facts: Configuration and what else identifies the checkpoint.
        files: Its weight files, of which pieces are read.
        batches: The data themselves, tokenised.
    """
    import transformers

    identity = [_FORMAT, transformers.__version__, asdict(settings), facts]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as stored:
            for piece in range(_PIECES):
                stored.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
                digest.update(stored.read(_PIECE_BYTES))
    for batch in batches:
        for name in sorted(batch):
            digest.update(name.encode())
            digest.update(batch[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def calibrated_moments(
    load: Callable[[], Any], batches: Sequence[Batch], key: str, *, progress: Callable[[int], None]
) -> StoredMoments:
    """Sum over batches, or read the sums from the cache; resumes an interrupted run.

    In a distributed run (``accelerate launch``, ``torchrun``) each process takes its share of the batches;
    the main process returns the sums, the others raise OtherProcessError. Caches need not be shared.

    Args:
        load: Gives the model when it is needed.
        batches: Inputs to sum up.
        key: Name in the cache.
        progress: Called with 1 for each batch done.

    Raises:
        OtherProcessError: This is not the main process, and its share is done.
        OutputError: The cache cannot be written.
        WeightError: The model gives NaN or infinity.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=not torch.cuda.is_available())
    folder = make_cache("calibration")
    done = folder / f"{key}.safetensors"
    share = list(batches)[state.process_index :: state.num_processes]
    # Nodes may have caches of their own; the main process's counts.
    found = _read(done) if state.is_main_process else None
    (is_there,) = broadcast_object_list([found is not None])
    if not is_there:
        partial = folder / f"{key}.{state.process_index}-of-{state.num_processes}.partial.safetensors"
        start = Moments.load(partial) if _read(partial) is not None else None
        if start is not None:
            progress(start.batches)
        saved = [time.monotonic()]

        def keep(moments: Moments) -> None:
            if time.monotonic() - saved[0] > SAVE_SECONDS:
                _save(moments, partial)
                saved[0] = time.monotonic()

        moments = collect(load(), share, start=start, after_batch=keep, progress=progress)
        check_finite(moments)
        sum_over_processes(moments)
        if state.is_main_process:
            _save(moments, done)
            found = StoredMoments(done)
        state.wait_for_everyone()
        partial.unlink(missing_ok=True)
    else:
        progress(len(share))
    if found is None:
        raise OtherProcessError("this process has summed up its share of the calibration data")
    return found


def _read(file: Path) -> StoredMoments | None:
    """Read sums that were written whole; removes a damaged file."""
    if not file.is_file():
        return None
    try:
        found = StoredMoments(file)
        if found.is_intact():
            return found
    except Exception:  # whatever safetensors says of half a file
        pass
    file.unlink(missing_ok=True)
    return None


def _save(moments: Moments, file: Path) -> None:
    try:
        moments.save(file)
    except OSError as error:
        raise OutputError(
            f"{file} cannot be written ({error.strerror or error}); set GQKVA_CACHE to a folder with room"
        ) from error
