"""Text that needs no download: the source files of Python's standard library, split by file.

Every Python installation has these files; the demo's model was trained on them. A file is held out by the
hash of its path inside the library, never by its position in a list: the same files are held out on
every Python version and the model has seen none of them.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from gqkva_convert.errors import DemoError

HELD_OUT_ONE_IN = 10

# Tables, generated text and packages that newer Pythons dropped; `site-packages` is not the standard library.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data", "lib2to3", "distutils"}
)
# Present only in some installations, so these folders can be trained on but not measured on.
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})


def library_folder() -> Path:
    """Return the folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_held_out(relative_path: str) -> bool:
    """Return whether a file, named by its ``/``-separated path inside the library, is kept from training."""
    parts = set(relative_path.split("/"))
    if parts & _TEST_FOLDERS:
        return False
    digest = hashlib.sha256(relative_path.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def iter_texts(*, held_out: bool, folder: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield ``(relative path, text)`` of each file on one side of the split, in path order.

    Raises:
        DemoError: The interpreter was installed without its source files.
    """
    root = folder or library_folder()
    found = False
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if set(relative.split("/")) & _SKIPPED_FOLDERS or relative.startswith("_sysconfigdata"):
            continue
        if is_held_out(relative) != held_out:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # the test folders hold files that are unreadable on purpose
        if text.strip():
            found = True
            yield relative, text
    if not found:
        raise DemoError(
            f"no source files of the standard library under {root}; "
            "run the demo with a Python that has its library as .py files"
        )
