"""Names of models and data as strangers may read them: folders of this machine are nobody's business."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

# How the names of files end that models and data are in; Hub ids have dots too.
_FILES = (".csv", ".gz", ".gguf", ".json", ".jsonl", ".npz", ".parquet", ".txt", ".yaml", ".yml")
# The folders of a path from a root, a home, here or above, anywhere in a text; web addresses are none.
_FOLDERS = re.compile(r"(?<![\w:/.~])(?:file://)?(?:~[\w-]*|\.{1,2})?/(?:[^\s/,=:;'\"]+/)*(?=[^\s/])")
# What reports and measurements call models, data and folders by.
_NAMED = frozenset({"name", "data", "against", "teacher", "model", "held_out", "command", "folder"})


def short_name(name: str) -> str:
    """Return a Hub id or a short name as it is; of a path its last part."""
    path = Path(name)
    is_path = path.is_absolute() or name.startswith((".", "~")) or path.suffix.lower() in _FILES
    return path.name if (is_path or exists(path)) and path.name else name


def short_word(word: str) -> str:
    """Cut the paths of a command line's argument to their last parts; of NAME=VALUE those of the value."""
    name, equals, value = word.partition("=")
    if equals and name.isidentifier():
        return f"{name}={short_word(value)}"
    return ",".join(map(short_name, word.split(",")))


def without_folders(data: Any, *, named: bool = False) -> Any:
    """Return JSON data with every path cut to its last part.

    Args:
        data: What a report or a measurement holds.
        named: Whether texts in it name models, data or folders, so that a path may begin here.
    """
    if isinstance(data, dict):
        return {
            without_folders(key): without_folders(value, named=key in _NAMED) for key, value in data.items()
        }
    if isinstance(data, list):
        return [without_folders(value, named=named) for value in data]
    if not isinstance(data, str):
        return data
    return _FOLDERS.sub("", short_word(data) if named else data)


def fingerprint(name: str | None) -> str:
    """Identify data by the names, sizes and times of the files under a path, or by their name on the Hub.

    Args:
        name: A path, or what data are called on the Hub.
    """
    if name is None or not exists(Path(name)):
        return str(name)
    path = Path(name)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(str(file.relative_to(path.parent)), file.stat()) for file in files]
    listed = [(inner, stat.st_size, stat.st_mtime_ns) for inner, stat in stats]
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def everywhere(name: str) -> str:
    """Make a path absolute, links left as they are; any other name as it is."""
    return str(Path(name).absolute()) if exists(Path(name)) else name


def exists(path: Path) -> bool:
    """Return whether an argument of a command line is a path to something."""
    try:
        return path.exists()
    except OSError:  # a text too long to be a path
        return False
