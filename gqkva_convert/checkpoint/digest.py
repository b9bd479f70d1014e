"""Checksums of files; files that have not changed are not read again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

_known: dict[tuple[str, int, int, int], str] = {}


def file_sha256(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(4 << 20):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; it is read again only if its size or modification time changes."""
    found = path.stat()
    key = (str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ino)
    if key not in _known:
        _known[key] = file_sha256(path)
    return _known[key]


def files_sha256(files: dict[str, Path]) -> str:
    """Return one SHA-256 over the names and contents of files, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{known_sha256(files[name])}  {name}\n".encode())
    return digest.hexdigest()
