"""Bytes of a checkpoint's tensors, a range at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gqkva_convert.checkpoint.header import StoredTensor
from gqkva_convert.errors import CheckpointError

Bytes = npt.NDArray[np.uint8]


class Stamp(NamedTuple):
    """Identity, size and time of a file: one of them changes when it is written to or replaced."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, file: Path | int) -> Stamp:
        """Return the stamp of a file or of a file descriptor."""
        found = os.fstat(file) if isinstance(file, int) else file.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class TensorReader:
    """Reads ranges of tensors from safetensors files and PyTorch pickles; use as a context manager.

    Safe to use from several threads: every read names its own offset. Leaving the context without an error
    checks that no file was written to since its stamp was taken.

    Args:
        stamps: The files, each with its stamp from before its header was read.
        pickled: Whether they are pickles.

    Raises:
        CheckpointError: A file cannot be read, or has changed.
    """

    def __init__(self, stamps: Mapping[Path, Stamp], *, pickled: bool) -> None:
        self._stamps = stamps
        self._descriptors: dict[Path, int] = {}
        self._pickled: dict[Path, dict[str, Any]] = {}
        if pickled:
            from gqkva_convert.checkpoint.pickled import load_pickled

            for path in stamps:
                self._pickled[path] = load_pickled(path)
            return
        try:
            for path in stamps:
                self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.close()
            raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._require_unchanged()
        finally:
            self.close()

    def _require_unchanged(self) -> None:
        """Refuse files of which part may be old and part new."""
        for path, stamp in self._stamps.items():
            try:
                same = Stamp.of(self._descriptors.get(path, path)) == stamp
            except OSError:
                same = False
            if not same:
                raise CheckpointError(
                    f"{path} was written to while being read; run again once it is complete"
                )

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._pickled.clear()

    def descriptor(self, tensor: StoredTensor) -> int | None:
        """Return a file descriptor that the kernel can copy the tensor from, or None for a pickle."""
        return self._descriptors.get(tensor.file)

    def read(self, tensor: StoredTensor, start: int = 0, count: int | None = None) -> Bytes:
        """Read bytes ``start`` to ``start + count`` of a tensor into a new ``(count,)`` array.

        Raises:
            CheckpointError: The file ends early; it changed since its header was read.
        """
        count = tensor.nbytes - start if count is None else count
        if tensor.file in self._pickled:
            import torch

            stored = self._pickled[tensor.file][tensor.name].detach()
            flat = stored.resolve_conj().resolve_neg().contiguous().view(-1)
            data: Bytes = flat.view(torch.uint8).numpy()[start : start + count]
            return data
        buffer = np.empty(count, dtype=np.uint8)
        view = memoryview(buffer.data)
        descriptor = self._descriptors[tensor.file]
        done = 0
        while done < count:
            try:
                got = os.preadv(descriptor, [view[done:]], tensor.offset + start + done)
            except OSError as error:
                raise CheckpointError(f"{tensor.file}: cannot be read: {error.strerror}") from error
            if got == 0:
                raise CheckpointError(
                    f"{tensor.file} ends inside {tensor.name!r}; it changed while being read"
                )
            done += got
        return buffer


def same_bytes(one: StoredTensor, other: StoredTensor, reader: TensorReader) -> bool:
    """Return whether two tensors have one dtype, shape and content."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    chunk = 4 << 20
    pieces = ((at, min(chunk, one.nbytes - at)) for at in range(0, one.nbytes, chunk))
    return all(bool((reader.read(one, *piece) == reader.read(other, *piece)).all()) for piece in pieces)
