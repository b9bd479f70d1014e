"""One safetensors file: header first, then ranges in any order, untouched ones copied by the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gqkva_convert.checkpoint.header import build_header
from gqkva_convert.checkpoint.reader import Bytes
from gqkva_convert.errors import OutputError

# Large enough to amortise a system call, small enough that other writers of the file, and an interrupt,
# need not wait: the kernel locks the file for the length of each call.
COPY_BYTES = 8 << 20
# No such call, another file system, or a file system that cannot: the next way is tried.
_CANNOT_COPY = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


class ShardWriter:
    """Writes one file under a temporary name; `finish` gives it its own. Use as a context manager.

    Leaving the context without `finish` removes the file. Safe to use from several threads.
    """

    def __init__(
        self, path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        self.path = path
        self._unfinished = path.with_name(f"{path.name}.unfinished")
        opening, self.offsets = build_header(tensors, metadata)
        self._descriptor = os.open(
            self._unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666
        )
        try:
            self._pwrite(memoryview(opening), 0)
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Remove the file unless it is finished."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._unfinished.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the file its name. Every tensor must have been written."""
        os.close(self._descriptor)
        self._descriptor = -1
        self._unfinished.rename(self.path)

    def write(self, name: str, start: int, data: Bytes) -> None:
        """Write ``data`` at byte ``start`` of a tensor."""
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self._pwrite(memoryview(raw.data), self.offsets[name] + start)

    def copy(self, name: str, start: int, source: int, source_offset: int, count: int) -> None:
        """Copy ``count`` bytes of a descriptor to byte ``start`` of a tensor, inside the kernel."""
        target = self.offsets[name] + start
        while count:
            copied = self._copy_some(source, source_offset, target, min(count, COPY_BYTES))
            if copied == 0:
                raise OutputError(f"{self.path}: the source file ended early; it changed while being copied")
            source_offset, target, count = source_offset + copied, target + copied, count - copied

    def _copy_some(self, source: int, source_offset: int, target: int, count: int) -> int:
        if hasattr(os, "copy_file_range"):
            try:
                return os.copy_file_range(source, self._descriptor, count, source_offset, target)
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise _write_error(self.path, error) from error
        data = os.pread(source, count, source_offset)
        self._pwrite(memoryview(data), target)
        return len(data)

    def _pwrite(self, data: memoryview, offset: int) -> None:
        try:
            while data:
                written = os.pwrite(self._descriptor, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise _write_error(self.path, error) from error


def _write_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"no space left while writing {path}; free some or choose another folder")
    return OutputError(f"cannot write {path}: {error.strerror}")
