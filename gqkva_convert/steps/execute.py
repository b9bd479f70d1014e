"""Writing the shards: copies inside the kernel, merges beside them on the other cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gqkva_convert.checkpoint.folder import Checkpoint
from gqkva_convert.checkpoint.reader import Bytes, TensorReader
from gqkva_convert.checkpoint.writer import COPY_BYTES, ShardWriter
from gqkva_convert.plans.plan import Plan
from gqkva_convert.progress import Progress
from gqkva_convert.steps.compute import step_bytes
from gqkva_convert.steps.merged_blocks import MergedBlocks
from gqkva_convert.steps.shards import Shard
from gqkva_convert.steps.step import Step

# Computed bytes gathered before they are written, so as to take the file's lock seldom.
_WRITE_BYTES = 4 << 20
# The kernel lets one writer at a time into a file, so that a second core is used by a second file.
_SHARDS_AT_ONCE = 2


class _StoppedError(Exception):
    """Another thread failed or the run was interrupted."""


def write_shards(
    checkpoint: Checkpoint,
    plan: Plan,
    shards: tuple[Shard, ...],
    folder: Path,
    metadata: dict[str, str],
    progress: Progress,
    make_merged: Callable[[TensorReader], MergedBlocks] = MergedBlocks,
) -> None:
    """Write every shard that is not in ``folder`` yet.

    Args:
        checkpoint: The source.
        plan: Rule and seed of the merges.
        shards: Files to write; a file already there is complete and kept.
        folder: Where to write.
        metadata: Free text for every file's header.
        progress: Called with the number of output bytes just written, from any thread.
        make_merged: Makes the merged blocks of a joint rule.

    Raises:
        WeightError: Weights cannot be merged.
        OutputError: A file cannot be written.
    """
    missing = []
    for shard in shards:
        if (folder / shard.file_name).exists():
            progress(shard.nbytes)
        else:
            missing.append(shard)
    cores = min(8, os.cpu_count() or 1)
    stop = threading.Event()
    with (
        checkpoint.reader() as reader,
        ThreadPoolExecutor(max(1, cores - 1)) as computers,
        ThreadPoolExecutor(_SHARDS_AT_ONCE) as writers,
    ):
        merged = make_merged(reader)

        def write_one(shard: Shard) -> None:
            tensors = [(step.name, step.dtype, step.shape) for step in shard.steps]
            with ShardWriter(folder / shard.file_name, tensors, metadata) as writer:
                writing = _Writing(plan, reader, merged, writer, stop, progress)
                computations: list[Future[None]] = []
                try:
                    for step in shard.steps:
                        if not step.is_copy:
                            computations.append(computers.submit(writing.compute, step))
                    writing.copy([step for step in shard.steps if step.is_copy])
                    for computation in computations:
                        computation.result()
                except BaseException:
                    stop.set()
                    wait(computations)  # none may write once the file is closed
                    raise
                writer.finish()

        futures = [writers.submit(write_one, shard) for shard in missing]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if not all(future.done() and future.exception() is None for future in futures):
                stop.set()
                for future in futures:
                    future.cancel()
        _raise_first(futures)


def _raise_first(futures: list[Future[None]]) -> None:
    """Raise the first error that stopped a shard, if any, rather than the stops that it caused."""
    wait(futures)
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    for error in errors:
        if not isinstance(error, _StoppedError):
            raise error
    assert not errors, "stopped without a reason"


@dataclass(frozen=True)
class _Writing:
    """The filling of one shard; its methods run in several threads, each at its own offset."""

    plan: Plan
    reader: TensorReader
    merged: MergedBlocks
    writer: ShardWriter
    stop: threading.Event
    progress: Progress

    def copy(self, steps: Sequence[Step]) -> None:
        """Copy whole tensors; tensors that follow each other in both files are one copy."""
        runs: list[list[Step]] = []
        for step in steps:
            if self.reader.descriptor(step.source) is None:
                for start in range(0, step.nbytes, COPY_BYTES):
                    size = min(COPY_BYTES, step.nbytes - start)
                    self._write(step, start, self.reader.read(step.source, start, size))
            elif runs and self._continues(runs[-1][-1], step):
                runs[-1].append(step)
            else:
                runs.append([step])
        for run in runs:
            descriptor = self.reader.descriptor(run[0].source)
            assert descriptor is not None
            count = sum(step.nbytes for step in run)
            for start in range(0, count, COPY_BYTES):
                self._require_going()
                size = min(COPY_BYTES, count - start)
                self.writer.copy(run[0].name, start, descriptor, run[0].source.offset + start, size)
                self.progress(size)

    def _continues(self, last: Step, step: Step) -> bool:
        """Return whether a tensor follows another one directly, in the source and in the output."""
        return (
            step.source.file == last.source.file
            and step.source.offset == last.source.offset + last.nbytes
            and self.writer.offsets[step.name] == self.writer.offsets[last.name] + last.nbytes
        )

    def compute(self, step: Step) -> None:
        """Compute a tensor that is no copy and write it, some megabytes at a time."""
        gathered: list[Bytes] = []
        first = size = 0
        for start, data in step_bytes(step, self.plan.merge, self.plan.seed, self.reader, self.merged):
            self._require_going()
            if not gathered:
                first = start
            gathered.append(data)
            size += data.nbytes
            if size >= _WRITE_BYTES:
                self._write(step, first, np.concatenate(gathered))
                gathered, size = [], 0
        if gathered:
            self._write(step, first, np.concatenate(gathered))

    def _write(self, step: Step, start: int, data: Bytes) -> None:
        self._require_going()
        self.writer.write(step.name, start, data)
        self.progress(data.nbytes)

    def _require_going(self) -> None:
        if self.stop.is_set():
            raise _StoppedError
