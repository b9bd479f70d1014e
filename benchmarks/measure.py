"""Run a command as a whole process, with a warm source and an idle disk: seconds and peak memory."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02
HEAVY_MODULES = ("torch", "transformers")


@dataclass(frozen=True)
class Run:
    """One finished process.

    Attributes:
        seconds: Wall time from before it started until it was reaped.
        peak_rss_bytes: Largest resident set (``ru_maxrss``), file-backed pages included. Linux counts the
            parent's own size at the start too, so it is never below that of `true`.
        peak_anonymous_bytes: Largest ``RssAnon`` sampled every 20 ms: memory that is not backed by a file.
        cpu_seconds: Seconds that cores worked for it, in its own code and in the kernel.
        exit_status: Exit status; negative for a signal.
        error: The end of its stderr if it failed.
    """

    seconds: float
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    cpu_seconds: float
    exit_status: int
    error: str


def run_process(command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> Run:
    """Run a command and discard its output."""
    with tempfile.TemporaryFile() as stderr:
        stop, peaks = threading.Event(), [0]
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, env={**os.environ, **(environment or {})}
        )
        sampler = threading.Thread(target=_sample_anonymous, args=(process.pid, stop, peaks))
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        stop.set()
        sampler.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        error = "" if process.returncode == 0 else _tail(stderr.seek(0, os.SEEK_END), stderr.fileno())
    unit = 1 if sys.platform == "darwin" else 1024
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Run(seconds, usage.ru_maxrss * unit, peaks[0], cpu_seconds, process.returncode, error)


def _sample_anonymous(pid: int, stop: threading.Event, peaks: list[int]) -> None:
    path = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        # If memory runs out, the kernel kills the measured process, not its neighbours.
        (path / "oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError):
        while not stop.is_set():
            found = re.search(r"RssAnon:\s+(\d+) kB", (path / "status").read_text())
            if found:
                peaks[0] = max(peaks[0], 1024 * int(found[1]))
            stop.wait(SAMPLE_SECONDS)


def _tail(size: int, descriptor: int) -> str:
    return os.pread(descriptor, 2000, max(0, size - 2000)).decode(errors="replace").strip()


def warm(folder: Path) -> float:
    """Read a folder's files twice, so that they are in the page cache.

    Returns:
        Bytes per second of the second reading: that of memory if everything fits, of the disk otherwise.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
        seconds = time.perf_counter() - started
    return sum(path.stat().st_size for path in files) / seconds


def heavy_imports(arguments: Sequence[str | Path]) -> list[str]:
    """Return the heavy modules that `gqkva` imports with these arguments, as the interpreter reports them."""
    command = [sys.executable, "-X", "importtime", "-m", "gqkva_convert", *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    return [name for name in HEAVY_MODULES if name in imported]
