"""Names of models and data as strangers may read them: folders of this machine are nobody's business."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# How the names of files end that models and data are in; Hub ids have dots too.
_FILES = (
    *(".bz2", ".csv", ".gz", ".gguf", ".json", ".jsonl", ".npz", ".parquet", ".txt", ".xz", ".yaml", ".yml"),
    ".zst",
)
# The folders of a path from a root, a home, here or above, anywhere in a text; web addresses are none.
_FOLDERS = re.compile(r"(?<![\w:/.~])(?:file://)?(?:~[\w-]*|\.{1,2})?/(?:[^\s/,=:;'\"]+/)*(?=[^\s/])")
# What reports and measurements call models, data and folders by.
_NAMED = frozenset({"name", "data", "against", "teacher", "model", "held_out", "command", "folder"})
# A configuration and a split behind the name of data: NAME:CONFIGURATION[SPLIT].
_PARTS = re.compile(r"(?P<name>.+?)(?::(?P<configuration>[^:/\\\[\]]+))?(?:\[(?P<split>.+)\])?", re.DOTALL)
# What a record of data holds of the data themselves, for whoever has them.
_SAMPLE = "sample"


@dataclass(frozen=True)
class DataName:
    """What a user calls data: a path, a Hub id or a short name, with a configuration and a split of it.

    Attributes:
        name: The path, id or short name alone.
        configuration: Name of a configuration; None for the only or usual one.
        split: Name of a split, or a slice of one such as ``train[:10%]``; None for the usual one.
    """

    name: str
    configuration: str | None = None
    split: str | None = None

    @classmethod
    def read(cls, text: str) -> DataName:
        """Read ``NAME``, ``NAME:CONFIGURATION``, ``NAME[SPLIT]`` or ``NAME:CONFIGURATION[SPLIT]``.

        A path that exists is a name as it is, whatever characters it has.
        """
        found = None if exists(Path(text)) or "://" in text else _PARTS.fullmatch(text)
        # A single letter before a colon is a drive.
        if found is None or (found["configuration"] and len(found["name"]) == 1):
            return cls(text)
        return cls(**found.groupdict())

    @property
    def path(self) -> Path:
        return Path(self.name)

    def renamed(self, name: str) -> str:
        """Return the text of another name with this configuration and split."""
        configuration = "" if self.configuration is None else f":{self.configuration}"
        return f"{name}{configuration}{'' if self.split is None else f'[{self.split}]'}"


def short_name(name: str) -> str:
    """Return a Hub id or a short name as it is; of a path its last part."""
    given = DataName.read(name)
    if given.name != name:
        return given.renamed(short_name(given.name))
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
    """Return JSON data with every path cut to its last part, and without samples of what was read.

    Args:
        data: What a report or a measurement holds.
        named: Whether texts in it name models, data or folders, so that a path may begin here.
    """
    if isinstance(data, dict):
        return {
            without_folders(key): without_folders(value, named=key in _NAMED)
            for key, value in data.items()
            if not (key == _SAMPLE and "shape" in data)
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
    given = None if name is None else DataName.read(name)
    if given is None or not exists(given.path):
        return str(name)
    path = given.path
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(str(file.relative_to(path.parent)), file.stat()) for file in files]
    listed = [(inner, stat.st_size, stat.st_mtime_ns) for inner, stat in stats]
    part = [given.renamed("")] if given.name != name else []
    return hashlib.sha256(repr([*listed, *part]).encode()).hexdigest()


def everywhere(name: str) -> str:
    """Make a path absolute, links left as they are; any other name as it is."""
    given = DataName.read(name)
    return given.renamed(str(given.path.absolute())) if exists(given.path) else name


def exists(path: Path) -> bool:
    """Return whether an argument of a command line is a path to something."""
    try:
        return path.exists()
    except OSError:  # a text too long to be a path
        return False
