"""Names of models and data as strangers may read them: folders of this machine are nobody's business."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# How the names of files end that models and data are in; Hub ids have dots too.
_FILES = (".csv", ".gz", ".gguf", ".json", ".jsonl", ".npz", ".parquet", ".txt", ".yaml", ".yml")


def short_name(name: str) -> str:
    """A Hub id or a short name as it is; of a path its last part."""
    path = Path(name)
    is_file = path.suffix.lower() in _FILES or path.exists()
    return path.name if (_leads_somewhere(name) or is_file) and path.name else name


def short_word(word: str) -> str:
    """A word of a command line with its path, if it is one, cut to the last part; of NAME=VALUE the value."""
    name, equals, value = word.partition("=")
    return f"{name}={short_name(value)}" if equals and name.isidentifier() else short_name(word)


def without_folders(data: Any) -> Any:
    """JSON data with every path that begins at a root, a home or above cut to its last part."""
    if isinstance(data, dict):
        return {name: without_folders(value) for name, value in data.items()}
    if isinstance(data, list):
        return [without_folders(value) for value in data]
    if isinstance(data, str) and "\n" not in data and _leads_somewhere(data.rpartition("=")[2]):
        return short_word(data)
    return data


def _leads_somewhere(name: str) -> bool:
    return Path(name).is_absolute() or name.startswith(("./", "../", "~"))
