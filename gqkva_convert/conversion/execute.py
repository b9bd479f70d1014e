"""Writing the shards: copies inside the kernel, merges beside them on the other cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np

from gqkva_convert.checkpoint.folder import Checkpoint
from gqkva_convert.checkpoint.reader import Bytes, TensorReader
from gqkva_convert.checkpoint.writer import COPY_BYTES, ShardWriter
from gqkva_convert.conversion.compute import step_bytes
from gqkva_convert.conversion.plan import Plan
from gqkva_convert.conversion.shards import Shard
from gqkva_convert.conversion.steps import Step

Progress = Callable[[int], None]
Job = Callable[[], None]

# Computed bytes gathered before they are written, so as to take the file's lock seldom.
_WRITE_BYTES = 8 << 20


class _StoppedError(Exception):
    """Another thread failed or the run was interrupted."""


def write_shards(
    checkpoint: Checkpoint,
    plan: Plan,
    shards: tuple[Shard, ...],
    folder: Path,
    metadata: dict[str, str],
    progress: Progress,
) -> None:
    """Write every shard that is not in ``folder`` yet.

    Args:
        checkpoint: The source.
        plan: Rule and seed of the merges.
        shards: Files to write; a file already there is complete and kept.
        folder: Where to write.
        metadata: Free text for every file's header.
        progress: Called with the number of output bytes just written, from any thread.

    Raises:
        WeightError: Weights cannot be merged.
        OutputError: A file cannot be written.
    """
    with TensorReader(checkpoint.files, pickled=checkpoint.pickled) as reader:
        for shard in shards:
            path = folder / shard.file_name
            if path.exists():
                progress(shard.nbytes)
                continue
            tensors = [(step.name, step.dtype, step.shape) for step in shard.steps]
            with ShardWriter(path, tensors, metadata) as writer:
                stop = threading.Event()
                copies = list(_copies(shard, reader, writer, stop, progress))
                computations = [
                    _compute_job(step, plan, reader, writer, stop, progress)
                    for step in shard.steps
                    if not step.is_copy
                ]
                _run(copies, computations, stop)
                writer.finish()


def _run(copies: list[Job], computations: list[Job], stop: threading.Event) -> None:
    """Copy on one thread, compute on the others; the first error, or an interrupt, stops all.

    One copying thread is enough: the kernel lets one writer at a time into a file.
    """

    def copy_all() -> None:
        for job in copies:
            job()

    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(max_workers=max(2, min(8, cores))) as pool:
        futures: list[Future[None]] = []
        try:
            futures = [pool.submit(job) for job in (copy_all, *computations)]
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done() and not future.cancelled() and future.exception() is not None:
                    future.result()
        finally:
            stop.set()
            for future in futures:
                future.cancel()


def _copies(
    shard: Shard, reader: TensorReader, writer: ShardWriter, stop: threading.Event, progress: Progress
) -> Iterator[Job]:
    """Copies of whole tensors; tensors that follow each other in both files are one copy."""
    runs: list[list[Step]] = []
    for step in shard.steps:
        if not step.is_copy:
            continue
        if reader.descriptor(step.source) is None:
            yield _read_job(step, reader, writer, stop, progress)
        elif runs and _continues(runs[-1], step, writer):
            runs[-1].append(step)
        else:
            runs.append([step])
    for run in runs:
        nbytes = sum(step.nbytes for step in run)
        yield _copy_job(run[0], nbytes, reader, writer, stop, progress)


def _continues(run: list[Step], step: Step, writer: ShardWriter) -> bool:
    """Whether a tensor follows the run's last one directly, in the source and in the output."""
    last = run[-1]
    return (
        step.source.file == last.source.file
        and step.source.offset == last.source.offset + last.nbytes
        and writer.offsets[step.name] == writer.offsets[last.name] + last.nbytes
    )


def _copy_job(
    first: Step,
    count: int,
    reader: TensorReader,
    writer: ShardWriter,
    stop: threading.Event,
    progress: Progress,
) -> Job:
    def job() -> None:
        descriptor = reader.descriptor(first.source)
        assert descriptor is not None
        for start in range(0, count, COPY_BYTES):
            if stop.is_set():
                raise _StoppedError
            size = min(COPY_BYTES, count - start)
            writer.copy(first.name, start, descriptor, first.source.offset + start, size)
            progress(size)

    return job


def _read_job(
    step: Step, reader: TensorReader, writer: ShardWriter, stop: threading.Event, progress: Progress
) -> Job:
    def job() -> None:
        for start in range(0, step.nbytes, COPY_BYTES):
            if stop.is_set():
                raise _StoppedError
            data = reader.read(step.source, start, min(COPY_BYTES, step.nbytes - start))
            writer.write(step.name, start, data)
            progress(data.nbytes)

    return job


def _compute_job(
    step: Step,
    plan: Plan,
    reader: TensorReader,
    writer: ShardWriter,
    stop: threading.Event,
    progress: Progress,
) -> Job:
    def job() -> None:
        gathered: list[Bytes] = []
        first = size = 0
        for start, data in step_bytes(step, plan.merge, plan.seed, reader):
            if stop.is_set():
                raise _StoppedError
            if not gathered:
                first = start
            gathered.append(data)
            size += data.nbytes
            if size >= _WRITE_BYTES:
                writer.write(step.name, first, np.concatenate(gathered))
                progress(size)
                gathered, size = [], 0
        if gathered:
            writer.write(step.name, first, np.concatenate(gathered))
            progress(size)

    return job
