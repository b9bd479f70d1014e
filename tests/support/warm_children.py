"""Commands in processes of their own that start in milliseconds: forks of one that has imported everything.

A fork can be killed at a moment, or just before its n-th change of a file below a folder: opening for
writing, creating, renaming or removing. So hundreds of kills take minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Longest time of one command.
SECONDS = 90
_CHANGES = frozenset(
    {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.link", "os.symlink"}
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; minus the signal's number where one ended it.
        seconds: How long it ran.
        changes: Changes of files below the folder, if it was not killed.
        errors: What it wrote to standard error.
    """

    code: int
    seconds: float
    changes: int
    errors: str

    @property
    def lines(self) -> list[str]:
        """Return the lines that say what went wrong."""
        return [line for line in self.errors.splitlines() if line.startswith("error: ")]


class Children:
    """Runs commands one after the other or beside each other in forks of a warm process."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder, self._count = process, folder, 0

    def run(
        self,
        arguments: Sequence[Any],
        below: Path,
        *,
        at_second: float | None = None,
        at_change: int | None = None,
        patch: str = "",
    ) -> Ended:
        """Run a command; kill it at a moment or at a change below a folder, if asked."""
        asked: dict[str, Any] = {"at_second": at_second, "at_change": at_change, "patch": patch}
        (ended,) = self.race([arguments], below, **asked)
        return ended

    def race(self, commands: Sequence[Sequence[Any]], below: Path, **asked: Any) -> list[Ended]:
        """Run commands beside each other."""
        self._count += 1
        places = [str(self._folder / f"{self._count}-{number}") for number in range(len(commands))]
        request = {
            "commands": [[str(word) for word in command] for command in commands],
            "below": str(below),
            "places": places,
            **asked,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        found = []
        for place, (code, seconds) in zip(places, answer, strict=True):
            errors = Path(f"{place}.err").read_text(errors="replace")
            count = Path(f"{place}.count")
            changes = int(count.read_text()) if count.exists() else 0
            found.append(Ended(code, seconds, changes, errors))
            for path in self._folder.glob(f"{Path(place).name}.*"):
                path.unlink()
        return found


@contextmanager
def warm_children(folder: Path, environment: Mapping[str, str]) -> Iterator[Children]:
    """Start the process that forks, with an environment that all commands share."""
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **environment},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "warm\n"
        yield Children(process, folder)
    finally:
        process.communicate()


def _serve() -> None:
    import importlib
    import pkgutil

    import transformers.models.llama.modeling_llama
    import transformers.models.llama.tokenization_llama  # noqa: F401

    import gqkva_convert

    with contextlib.suppress(ImportError):
        import gguf  # noqa: F401
    for module in pkgutil.walk_packages(gqkva_convert.__path__, "gqkva_convert."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    print("warm", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        began = time.monotonic()
        pids = [
            _fork(command, request, place)
            for command, place in zip(request["commands"], request["places"], strict=True)
        ]
        print(json.dumps([_wait(pid, began, request.get("at_second")) for pid in pids]), flush=True)


def _wait(pid: int, began: float, at_second: float | None) -> tuple[int, float]:
    descriptor = os.pidfd_open(pid)
    limit = SECONDS if at_second is None else at_second
    if not select.select([descriptor], [], [], max(0.0, began + limit - time.monotonic()))[0]:
        os.kill(pid, signal.SIGKILL if at_second is not None else signal.SIGALRM)
    _, status = os.waitpid(pid, 0)
    os.close(descriptor)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


def _fork(command: Sequence[str], request: dict[str, Any], place: str) -> int:
    Path(f"{place}.err").touch()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        with Path(f"{place}.out").open("wb") as out, Path(f"{place}.err").open("wb") as err:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        exec(request.get("patch", ""))
        count = _count_changes(request["below"], request.get("at_change"))
        code = _run(command)
        Path(f"{place}.count").write_text(str(count[0]))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return 0


def _run(command: Sequence[str]) -> int:
    from gqkva_convert.cli import app

    try:
        app(list(command), prog_name="gqkva")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _count_changes(below: str, last: int | None) -> list[int]:
    count = [0]

    def see(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & _WRITES):
                return
        elif event in _CHANGES:
            path = arguments[0]
        else:
            return
        name = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
        if name and (name.startswith(below) or not name.startswith("/")):  # rmtree names files in a folder
            count[0] += 1
            if count[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(see)
    return count


if __name__ == "__main__":
    _serve()
