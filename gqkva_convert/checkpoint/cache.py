"""The cache folder: sums of calibration, prepared rows, fitted heads."""

from __future__ import annotations

import os
from pathlib import Path

from gqkva_convert.errors import OutputError


def cache_folder() -> Path:
    """Return the folder of all caches: ``GQKVA_CACHE``, else ``gqkva`` in the user's cache folder."""
    if "GQKVA_CACHE" in os.environ:
        return Path(os.environ["GQKVA_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gqkva"


def make_cache(name: str) -> Path:
    """Return a folder of the cache, created if missing.

    Raises:
        OutputError: It cannot be made.
    """
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the cache {folder} fails ({error.strerror or error}); set GQKVA_CACHE to another folder"
        ) from error
    return folder
