"""A folder that appears under its name only when it is complete.

Work happens in a scratch folder beside the target, held by a lock that dies with its process. A
killed run leaves its scratch folder behind; the next run on the same target resumes from its complete
shards, or removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from gqkva_convert.checkpoint.sidecars import GGUF_REPORT
from gqkva_convert.errors import OutputError, first_line
from gqkva_convert.units import human_bytes

# Messages of torch and safetensors for failed writes, in errors that are no `OSError`.
_UNWRITTEN = re.compile("unexpected pos|PytorchStreamWriter|iostream error|Error while serializing")


def scratch_folder(target: Path) -> Path:
    """Return the folder that a run on ``target`` writes to until it is complete."""
    return target.with_name(f".{target.name}.gqkva-partial")


def _previous_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.gqkva-previous")


@contextmanager
def published_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a scratch folder that becomes ``target`` if the block succeeds.

    An error inside removes the scratch folder. An interrupt keeps it, so that the same command can
    resume from the last complete shard. With ``overwrite``, an existing checkpoint stays in place until
    the new one is complete.

    Args:
        target: Folder to create; its parent is created if missing.
        overwrite: Whether an existing checkpoint folder may be replaced.

    Raises:
        OutputError: The target exists, is in use by another run, or cannot be written.
    """
    target = Path.cwd() / target  # a link under this name is refused below, so it is not followed here
    if not target.name or target.name == "..":
        raise OutputError(f"{target} cannot be a new folder; name one")
    scratch, previous = scratch_folder(target), _previous_folder(target)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            if previous.exists() and not target.exists():
                previous.rename(target)  # killed between the two renames below
            elif _is_checkpoint(target):
                shutil.rmtree(previous, ignore_errors=True)  # killed after them
            check_target(target, overwrite)
            if scratch.is_symlink():
                raise OutputError(f"{scratch} is a link, which no run of ours leaves behind; remove it")
            scratch.mkdir(exist_ok=True)
            try:
                yield scratch
            except Exception:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
            except BaseException:
                if not any(scratch.glob("*.safetensors")):
                    shutil.rmtree(scratch, ignore_errors=True)
                raise
            _let_others_read(scratch)
            _put_in_place(scratch, target, previous)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Say in one line what kept Python, torch or safetensors from writing.

    Raises:
        OutputError: In place of their error; any other passes.
    """
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise OutputError(f"cannot write {target}: {error.strerror or error}{where}") from error
    except (SafetensorError, RuntimeError) as error:
        if not _UNWRITTEN.search(str(error)):
            raise
        raise OutputError(f"cannot write {target}: {first_line(error)}; is the disk full?") from error


def _let_others_read(folder: Path) -> None:
    """Give files the default permissions: safetensors creates its own readable by their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*.safetensors"):
        if path.stat().st_mode & 0o777 == 0o600:
            path.chmod(0o666 & ~mask)


def _put_in_place(scratch: Path, target: Path, previous: Path) -> None:
    """Rename the scratch folder to the target; an old target comes back if that fails."""
    try:
        if target.exists():
            shutil.rmtree(previous, ignore_errors=True)
            target.rename(previous)
        scratch.rename(target)
    except BaseException:
        if previous.exists() and not target.exists():
            previous.rename(target)
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a place that no checkpoint folder may be written to.

    Raises:
        OutputError: Something is there that must not be replaced.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise OutputError(f"{target} already exists; choose another folder or give --overwrite")
    is_folder = target.is_dir() and not target.is_symlink()
    if not is_folder or not (_is_checkpoint(target) or not any(target.iterdir())):
        raise OutputError(f"{target} is not a checkpoint folder, so --overwrite does not replace it")


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", GGUF_REPORT))


def clear_lock(target: Path) -> None:
    """Remove the lock of a run that was killed; never one that is held."""
    with suppress(OutputError, OSError):  # whoever takes it next says what keeps them from it
        if _lock_file(target).is_file():
            with locked(target):
                pass


def _lock_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.gqkva-lock")


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold a name that a folder has or will have; the hold dies with its process.

    Raises:
        OutputError: Another process holds it.
    """
    path = _lock_file(target)
    descriptor = _take_lock(path, target)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take_lock(path: Path, target: Path) -> int:
    # By hand: filelock.FileLock leaves its file beside the folder.
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise OutputError(f"{path} is a link, which no run of ours leaves behind; remove it") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the file between our open and our lock.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(
                f"another gqkva run is writing {target}; wait for it or choose another folder"
            ) from error
        os.close(descriptor)


def require_space(folder: Path, target: Path, nbytes: int) -> None:
    """Refuse to write more into a folder than fits on its disk; the error names ``target``.

    Raises:
        OutputError: It does not fit.
    """
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise OutputError(
            f"{target} needs {human_bytes(nbytes)}, only {human_bytes(free)} are free there; "
            "free some or choose another folder"
        )
