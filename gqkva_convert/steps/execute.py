"""Writing the shards: copies inside the kernel, merges beside them on the other cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
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
# A thread that merges a block holds its merged heads: 0.2 GiB at the size of 7B.
_MOST_THREADS = 16


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
    outputs = []
    for shard in shards:
        if (folder / shard.file_name).exists():
            progress(shard.nbytes)
        else:
            outputs.append(_Output(shard, folder, metadata))
    stop = threading.Event()
    with ExitStack() as stack:
        reader = stack.enter_context(checkpoint.reader())
        merged = stack.enter_context(make_merged(reader))
        merged.kept = 1  # a block's tensors are one unit
        for output in outputs:
            stack.callback(output.discard)
        computers = stack.enter_context(ThreadPoolExecutor(_usable_cores()))
        copiers = stack.enter_context(ThreadPoolExecutor(_SHARDS_AT_ONCE))
        writing = _Writing(plan, reader, merged, stop, progress)
        futures = [computers.submit(writing.compute, unit) for unit in _units(outputs)]
        futures += [copiers.submit(writing.copy, output) for output in outputs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if not all(future.done() and future.exception() is None for future in futures):
                stop.set()
                for future in futures:
                    future.cancel()
        _raise_first(futures)


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(_MOST_THREADS, cores or 1)


def _raise_first(futures: list[Future[None]]) -> None:
    """Raise the first error that stopped a shard, if any, rather than the stops that it caused."""
    wait(futures)
    errors = [error for future in futures if not future.cancelled() and (error := future.exception())]
    for error in errors:
        if not isinstance(error, _StoppedError):
            raise error
    assert not errors, "stopped without a reason"


class _Output:
    """A shard's file: opened by the first thread that writes to it, finished by the last.

    Args:
        shard: The file and its steps.
        folder: Where it is written.
        metadata: Free text for its header.
    """

    def __init__(self, shard: Shard, folder: Path, metadata: dict[str, str]) -> None:
        self.steps = shard.steps
        self._path = folder / shard.file_name
        self._metadata = metadata
        self._writer: ShardWriter | None = None
        self._left = 1 + sum(not step.is_copy for step in shard.steps)  # all copies count as one
        self._lock = threading.Lock()

    def writer(self) -> ShardWriter:
        with self._lock:
            if self._writer is None:
                tensors = [(step.name, step.dtype, step.shape) for step in self.steps]
                self._writer = ShardWriter(self._path, tensors, self._metadata)
            return self._writer

    def count_down(self) -> None:
        """Note that a computed step, or all copies, are written."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                assert self._writer is not None
                self._writer.finish()

    def discard(self) -> None:
        """Remove the file unless it is finished; no thread may write any more."""
        if self._writer is not None:
            self._writer.discard()


# Steps that one thread computes, each with the file that it goes to.
_Unit = list[tuple[Step, _Output]]


def _units(outputs: Sequence[_Output]) -> list[_Unit]:
    """Return the steps that are no copies, in order; those of a merged block together, in whatever files."""
    units: dict[object, _Unit] = {}
    for output in outputs:
        for step in output.steps:
            if not step.is_copy:
                key = step.name if step.merge is None else step.merge.block.place
                units.setdefault(key, []).append((step, output))
    return list(units.values())


@dataclass(frozen=True)
class _Writing:
    """The filling of shards; its methods run in several threads, each at its own offset."""

    plan: Plan
    reader: TensorReader
    merged: MergedBlocks
    stop: threading.Event
    progress: Progress

    def copy(self, output: _Output) -> None:
        """Copy a shard's whole tensors; tensors that follow each other in both files are one copy."""
        self._require_going()
        writer = output.writer()
        runs: list[list[Step]] = []
        for step in output.steps:
            if not step.is_copy:
                continue
            if self.reader.descriptor(step.source) is None:
                for start in range(0, step.nbytes, COPY_BYTES):
                    size = min(COPY_BYTES, step.nbytes - start)
                    self._write(writer, step, start, self.reader.read(step.source, start, size))
            elif runs and _continues(writer, runs[-1][-1], step):
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
                writer.copy(run[0].name, start, descriptor, run[0].source.offset + start, size)
                self.progress(size)
        output.count_down()

    def compute(self, unit: _Unit) -> None:
        """Compute tensors that are no copies and write them, some megabytes at a time."""
        for step, output in unit:
            self._require_going()
            writer = output.writer()
            gathered: list[Bytes] = []
            first = size = 0
            for start, data in step_bytes(step, self.plan.merge, self.plan.seed, self.reader, self.merged):
                self._require_going()
                if not gathered:
                    first = start
                gathered.append(data)
                size += data.nbytes
                if size >= _WRITE_BYTES:
                    self._write(writer, step, first, np.concatenate(gathered))
                    gathered, size = [], 0
            if gathered:
                self._write(writer, step, first, np.concatenate(gathered))
            output.count_down()

    def _write(self, writer: ShardWriter, step: Step, start: int, data: Bytes) -> None:
        self._require_going()
        writer.write(step.name, start, data)
        self.progress(data.nbytes)

    def _require_going(self) -> None:
        if self.stop.is_set():
            raise _StoppedError


def _continues(writer: ShardWriter, last: Step, step: Step) -> bool:
    """Return whether a tensor follows another one directly, in the source and in the output."""
    return (
        step.source.file == last.source.file
        and step.source.offset == last.source.offset + last.nbytes
        and writer.offsets[step.name] == writer.offsets[last.name] + last.nbytes
    )
