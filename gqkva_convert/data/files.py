"""Files and folders of data, as arguments of `datasets`: formats, compression, what is never opened."""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.data.jsonrows import require_json_rows
from gqkva_convert.data.names import DataName
from gqkva_convert.errors import DataError, GqkvaError, first_line

# What `datasets` calls the format of files by how their names end.
_FORMATS = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
# Compressed files, and the package that some need.
_COMPRESSIONS: dict[str, str | None] = {".gz": None, ".bz2": None, ".xz": None, ".zst": "zstandard"}
_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_READ = frozenset({*_FORMATS.values(), "imagefolder"})
_SCORED_PAIR = ("sentence1", "sentence2", "score")
# Files beside data that say something of them.
_ABOUT = frozenset(
    {"dataset_info", "dataset_infos", "readme", "license", "licence", "notice", "requirements"}
)
# What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave.
_SAVED, _SAVED_PARTS = "state.json", "dataset_dict.json"


def file_format(path: Path) -> str | None:
    """Return what `datasets` calls the format of a file by its name, compressed or not; None for no data."""
    name = path.name.lower()
    packed = next((ending for ending in _COMPRESSIONS if name.endswith(ending)), "")
    return _FORMATS.get(Path(name.removesuffix(packed)).suffix)


def is_format(name: str) -> bool:
    """Return whether a name is a reader of `datasets`, rather than data."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return name in _PACKAGED_DATASETS_MODULES


def data_files(folder: Path) -> list[Path]:
    """Return the files of data below a folder, images included, hidden ones not."""
    found = (path for path in sorted(folder.rglob("*")) if not _is_hidden(path.relative_to(folder)))
    return [
        path
        for path in found
        if path.suffix.lower() in _IMAGES
        or (file_format(path) is not None and path.name.partition(".")[0].lower() not in _ABOUT)
    ]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def one_file(path: Path) -> dict[str, Any]:
    """Return the arguments that `datasets` opens a file with.

    Raises:
        DataError: It is of no known format, is empty, or needs a package that is not installed.
    """
    kind = file_format(path)
    if kind is None:
        endings = ", ".join(_FORMATS)
        raise DataError(
            f"{path}: a file of data ends in {endings}, or such an ending and {', '.join(_COMPRESSIONS)}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    _require_unpacker(path)
    if kind == "json":
        require_json_rows(path)
    names: dict[str, Any] = {"column_names": list(_SCORED_PAIR)} if _is_bare_pairs(path) else {}
    if path.name.lower().removesuffix(path.suffix if path.suffix in _COMPRESSIONS else "").endswith(".tsv"):
        names["sep"] = "\t"
    return {"path": kind, "data_files": str(path), "split": "train", **names}


def _require_unpacker(path: Path) -> None:
    package = _COMPRESSIONS.get(path.suffix.lower())
    if package is not None and importlib.util.find_spec(package) is None:
        raise DataError(f"{path} is read with the package {package}, which is missing: pip install {package}")


def folder_of_files(given: DataName) -> dict[str, Any]:
    """Return the arguments that `datasets` opens a folder with.

    Raises:
        DataError: It holds no data, files of several formats, or names files outside it.
    """
    folder = given.path
    named = {} if given.configuration is None else {"name": given.configuration}
    files = data_files(folder)
    images = [file for file in files if file.suffix.lower() in _IMAGES]
    if images:
        # Folders in it are labels, a single one too, which `datasets` would take for none.
        is_one = len({file.parent for file in images}) == 1 and images[0].parent != folder
        labels = {"drop_labels": False} if is_one else {}
        return {"path": "imagefolder", "data_dir": str(folder), **labels, **named}
    for file in files:
        _require_unpacker(file)
    _require_inside(folder, given.configuration)
    for file in files:
        if file_format(file) == "json":
            require_json_rows(file)
    # Absolute: `datasets` takes a folder called json for the format.
    return {"path": str(folder.absolute()), **named}


def _require_inside(folder: Path, configuration: str | None) -> None:
    """Refuse a folder that names files elsewhere, or that a reader of other formats would open."""
    import datasets

    builder: Any = datasets.load_dataset_builder(str(folder.absolute()), configuration)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _READ:
        raise DataError(f"{folder} holds files of {kind}, which are not read; give {', '.join(_FORMATS)}")
    # Links are followed: only what a folder says of itself may not lead elsewhere.
    root = os.path.normpath(folder.absolute())
    listed = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
    for file in listed:
        inside = os.path.normpath(Path(file).absolute())
        if "://" in file.split("::")[-1] or not inside.startswith(f"{root}{os.sep}"):
            raise DataError(f"{folder} names {file}, which lies outside it; copy the file into the folder")
    readme = folder / "README.md"
    is_described = readme.is_file() and "configs:" in readme.read_text(encoding="utf-8", errors="replace")
    found = {str(file_format(file)) for file in data_files(folder)}
    if found != {kind} and not is_described:
        raise DataError(
            f"{folder} holds files of {', '.join(sorted(found))}, which are not read together; give one of "
            "the files, or a folder of one kind"
        )


def is_saved(folder: Path) -> bool:
    """Return whether a folder is what `save_to_disk` of `datasets` wrote."""
    try:
        return any((folder / name).is_file() for name in (_SAVED, _SAVED_PARTS))
    except OSError:  # a name too long to be a path
        return False


def open_saved(given: DataName, *, streaming: bool) -> Any:
    """Open what `save_to_disk` of `datasets` wrote: a data set, or one with several parts.

    Raises:
        DataError: It is damaged, names files outside it, or has no such part.
    """
    import datasets

    folder = given.path
    if given.configuration is not None:
        raise DataError(f"{folder} was saved by save_to_disk, which has no configurations; leave it out")
    parts = [""]
    if (folder / _SAVED_PARTS).is_file():
        parts = _names(folder / _SAVED_PARTS, "splits")
    for part in parts:
        _names(folder / part / _SAVED, "_data_files")
    if given.split is not None and given.split not in parts:
        had = f"has the splits {', '.join(parts)}" if parts != [""] else "has no splits"
        raise DataError(f"{folder} {had}, no {given.split}; choose another, or leave it out")
    found: Any = datasets.load_from_disk(str(folder if given.split is None else folder / given.split))
    found = found.with_format(None)
    require_sound(found)
    if not streaming:
        return found
    if isinstance(found, dict):
        return datasets.IterableDatasetDict(
            {name: each.to_iterable_dataset() for name, each in found.items()}
        )
    return found.to_iterable_dataset()


def require_sound(found: Any) -> None:
    """Refuse a table on disk whose texts are not UTF-8 or lie outside it: reading them raises, or crashes.

    Args:
        found: A data set that is not streamed, or a dictionary of several.

    Raises:
        DataError: It is damaged.
    """
    import pyarrow

    for each in found.values() if isinstance(found, dict) else [found]:
        try:
            each.data.table.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"the data are damaged ({first_line(error)}); make them again") from error


def _names(file: Path, key: str) -> list[str]:
    """Read names of files or folders beside a file.

    Raises:
        DataError: It is damaged, or names something elsewhere.
    """
    try:
        listed = read_json(file)[key]
        names = [each["filename"] if isinstance(each, dict) else each for each in listed]
        plain = [name for name in names if isinstance(name, str) and name and Path(name).name == name != ".."]
    except (GqkvaError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged: it names no {key.strip('_')}; save the data again") from error
    if len(plain) < len(names):
        wrong = next(name for name in names if name not in plain)
        raise DataError(f"{file} names {wrong!r}, which lies outside its folder; save the data again")
    return plain


def _is_bare_pairs(path: Path) -> bool:
    """Return whether a CSV file has no headings: two texts and a number in the first line, too."""
    if path.suffix != ".csv":
        return False
    with path.open(encoding="utf-8", newline="") as file:
        first = next(csv.reader(file), [])
    try:
        float(first[2])
    except (IndexError, ValueError):
        return False
    return len(first) == 3
