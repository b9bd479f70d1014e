"""The cache folder: sums of calibration, prepared rows, fitted heads."""

from __future__ import annotations

import glob
import os
import platform
import shutil
from pathlib import Path

from gqkva_convert.errors import OutputError

_PREFIX = ".unfinished-"


def cache_folder() -> Path:
    """Return the folder of all caches: ``GQKVA_CACHE``, else ``gqkva`` in the user's cache folder."""
    if "GQKVA_CACHE" in os.environ:
        return Path(os.environ["GQKVA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gqkva"


def make_cache(name: str) -> Path:
    """Return a folder of the cache, created if missing, without what killed processes left unfinished in it.

    Raises:
        OutputError: It cannot be made.
    """
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
    except OSError as error:
        raise OutputError(
            f"the cache {folder} fails ({error.strerror or error}); set GQKVA_CACHE to another folder"
        ) from error
    return folder


def unfinished(name: str) -> str:
    """Return a name for what this process writes; `make_cache` removes it once the process is gone."""
    return f"{_PREFIX}{platform.node()}~{os.getpid()}~{name}"


def _sweep(folder: Path) -> None:
    if not Path("/proc/self").exists():
        return
    for path in folder.glob(f"{_PREFIX}{glob.escape(platform.node())}~*~*"):
        number = path.name.split("~")[1]
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
