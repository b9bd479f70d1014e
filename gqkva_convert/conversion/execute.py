"""Writing the shards: copies inside the kernel, merges beside them on the other cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from gqkva_convert.checkpoint.folder import Checkpoint
from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.checkpoint.writer import COPY_BYTES, ShardWriter
from gqkva_convert.conversion.compute import step_bytes
from gqkva_convert.conversion.plan import Plan
from gqkva_convert.conversion.shards import Shard
from gqkva_convert.conversion.steps import Step

Progress = Callable[[int], None]
Job = Callable[[], None]

# A run of copied bytes given to one thread.
_RUN_BYTES = 8 * COPY_BYTES


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
                jobs = list(_jobs(shard, plan, reader, writer, stop, progress))
                _run(jobs, stop)
                writer.finish()


def _run(jobs: list[Job], stop: threading.Event) -> None:
    """Run the jobs on all cores; the first error, or an interrupt, stops the others between two pieces."""
    with ThreadPoolExecutor(max_workers=max(2, min(8, os.cpu_count() or 2))) as pool:
        futures: list[Future[None]] = []
        try:
            futures = [pool.submit(job) for job in jobs]
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done() and not future.cancelled() and future.exception() is not None:
                    future.result()
        finally:
            stop.set()
            for future in futures:
                future.cancel()


def _jobs(
    shard: Shard,
    plan: Plan,
    reader: TensorReader,
    writer: ShardWriter,
    stop: threading.Event,
    progress: Progress,
) -> Iterator[Job]:
    """Merges first, being the slower ones, then copies."""
    runs: list[list[Step]] = []
    for step in shard.steps:
        if not step.is_copy:
            yield _compute_job(step, plan, reader, writer, stop, progress)
        elif reader.descriptor(step.source) is None:
            yield _read_job(step, reader, writer, stop, progress)
        elif runs and _continues(runs[-1], step, writer):
            runs[-1].append(step)
        else:
            runs.append([step])
    for run in runs:
        nbytes = sum(step.nbytes for step in run)
        for start in range(0, nbytes, _RUN_BYTES):
            yield _copy_job(run[0], start, min(_RUN_BYTES, nbytes - start), reader, writer, stop, progress)


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
    start: int,
    count: int,
    reader: TensorReader,
    writer: ShardWriter,
    stop: threading.Event,
    progress: Progress,
) -> Job:
    def job() -> None:
        descriptor = reader.descriptor(first.source)
        assert descriptor is not None
        for at in range(start, start + count, COPY_BYTES):
            if stop.is_set():
                raise _StoppedError
            size = min(COPY_BYTES, start + count - at)
            writer.copy(first.name, at, descriptor, first.source.offset + at, size)
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
        for start, data in step_bytes(step, plan.merge, plan.seed, reader):
            if stop.is_set():
                raise _StoppedError
            writer.write(step.name, start, data)
            progress(data.nbytes)

    return job
