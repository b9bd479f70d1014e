"""Records of data sets: local files, folders of images, or the Hub; all read through `datasets`."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from gqkva_convert.data.files import (
    data_files,
    file_format,
    folder_of_files,
    is_format,
    is_saved,
    one_file,
    open_saved,
    require_sound,
)
from gqkva_convert.data.names import DataName
from gqkva_convert.data.shapes import Record, renamed_columns
from gqkva_convert.errors import DataError

# Short names of data sets that people calibrate and measure on: Hub id, configuration, what to measure on.
KNOWN = {
    "wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
    "c4": ("allenai/c4", "en", "validation"),
    "stsb": ("sentence-transformers/stsb", None, "test"),
    "cifar10": ("uoft-cs/cifar10", None, "test"),
}
# The source files of Python's standard library, which need no download.
LIBRARY = "python-library"
TRAIN, TEST = "train", "test"
# Parts of a data set that has several, best first.
_PARTS = {TRAIN: ("train", "validation"), TEST: ("test", "validation", "dev")}
SCORE_COLUMNS = ("score", "label", "similarity_score")
LABEL_COLUMNS = ("label", "labels", "fine_label")
IMAGE_COLUMNS = ("image", "img", "pixel_values")
# Records that a shuffle holds at once.
_SHUFFLE_BUFFER = 10_000


def load_records(
    data: str, *, streaming: bool, part: str = TRAIN, split: str | None = None, columns: Sequence[str] = ()
) -> Any:
    """Open a data set with `datasets`; no code of it is run and nothing of it is unpickled.

    Args:
        data: A file, a folder, a Hub id, or a short name: of `KNOWN`, or `LIBRARY`; with a configuration and
            a split where it has several (`DataName`).
        streaming: Whether records are read as they are asked for, or prepared on disk beforehand.
        part: Which part of a data set that has several: `TRAIN`, or `TEST` (validation where there is none).
        split: Its name for that part, where it is another.
        columns: Columns that a user asks for; those that stand for known ones are called so.

    Raises:
        DataError: It cannot be found or read, or has no such column.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"data are read with the package datasets, which does not load: {error}") from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it cannot read we say ourselves
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not our user's business
    given = DataName.read(data)
    if split is not None and given.split not in (None, split):
        raise DataError(f"{data} names a split itself, and --split {split} another; leave one out")
    given = replace(given, split=split or given.split)
    with one_line(data):
        found: Any
        if given.name == LIBRARY and not given.path.exists():
            return _library(given, part, streaming=streaming)
        if is_saved(given.path):
            found = open_saved(given, streaming=streaming)
        else:
            found = datasets.load_dataset(**_where(given, part), streaming=streaming)
            if not streaming:
                require_sound(found)
        if not isinstance(found, (datasets.IterableDataset, datasets.Dataset)):
            found = found[next(name for name in (*_PARTS[part], *found) if name in found)]
        for name, feature in (found.features or {}).items():
            if isinstance(feature, datasets.Image):
                # `read_image` opens them and can name one that is damaged.
                found = found.cast_column(name, datasets.Image(decode=False))
        found = _with_known_names(found, data, columns)
    return found


def _with_known_names(found: Any, data: str, columns: Sequence[str]) -> Any:
    """Call columns as the user says they are meant."""
    renamed, read = renamed_columns(columns)
    has = list(found.features or next(iter(found), {})) if columns else []
    for name in (*renamed, *read):
        if name not in has:
            near = difflib.get_close_matches(name, has, n=1)
            meant = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(has)}"
            raise DataError(f"{data} has no column {name!r}{meant}")
    renamed = {name: known for name, known in renamed.items() if name != known}
    hidden = [known for known in renamed.values() if known in has and known not in renamed]
    found = found.remove_columns(hidden) if hidden else found
    return found.rename_columns(renamed) if renamed else found


def _library(given: DataName, part: str, *, streaming: bool) -> Any:
    """Read files of the standard library; for measuring, files the built-in model has not seen."""
    import datasets

    from gqkva_convert.data.python_library import iter_texts

    if given.configuration is not None or given.split not in (None, TRAIN, TEST):
        wrong = given.configuration or given.split
        raise DataError(f"{LIBRARY} has the parts {TRAIN} and {TEST}, no {wrong}; leave out the split")
    texts = [text for _, text in iter_texts(held_out=(given.split or part) == TEST)]
    found = datasets.Dataset.from_dict({"text": texts})
    return found.to_iterable_dataset() if streaming else found


def read_records(data: str, seed: int, columns: Sequence[str] = ()) -> Iterator[Record]:
    """Yield records of a data set, shuffled by the seed unless it is running text.

    Args:
        data: Its name, like ``columns`` as for `load_records`.
        seed: Seed of the order.
        columns: Columns that a user asks for.

    Raises:
        DataError: It cannot be found or read.
    """
    found = load_records(data, streaming=True, columns=columns)
    if not is_running_text(data):
        found = found.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
    with one_line(data):
        yield from found


@contextmanager
def one_line(data: str) -> Iterator[None]:
    """Return whatever a reader of some format raises as one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {' '.join(lines[: 2 if 'Config name' in lines[0] else 1])}"
        remedy = "give a txt, jsonl, csv or parquet file, a folder, or a Hub id"
        if DataName.read(data).path.is_file():
            remedy = "mend the file (rows are counted from 0)" if " in row " in reason else "mend the file"
        near = difflib.get_close_matches(data, (*KNOWN, LIBRARY), n=1)
        if near and near[0] != data:
            remedy = f"did you mean {near[0]}?"
        elif "zstandard" in str(error).lower():
            remedy = "pip install zstandard"
        elif "config" in reason.lower():
            remedy = "choose one behind the name, as in NAME:CONFIGURATION"
        elif "split" in str(error).lower():
            remedy = "choose another --split, or leave it out"
        raise DataError(f"cannot read {data!r} as a data set ({reason}); {remedy}") from error


def score_column(record: Record, names: Sequence[str], data: str) -> str | None:
    """Find the column that scores the pairs of a data set; None where there is none.

    Args:
        record: One of its records.
        names: Columns of its texts.
        data: Its name.

    Raises:
        DataError: The values are classes of inference, not scores.
    """
    found = next((name for name in SCORE_COLUMNS if name in record), None)
    if len(names) == 2 and found == "label" and tuple(names) == ("premise", "hypothesis"):
        raise DataError(
            f"{data}: label of premise and hypothesis is a class, not how alike they are; keep the pairs "
            "that are entailed, without label, or give a column score"
        )
    return found if len(names) == 2 else None


def read_score(value: Any, data: str) -> float:
    """Read a pair's score.

    Raises:
        DataError: It is no number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{data}: a pair has the score {value!r}, which is no number; mend or remove it")
    return number


def is_running_text(data: str) -> bool:
    """Return whether records are lines of one text, whose order matters: of txt files, or of WikiText."""
    given = DataName.read(data)
    if given.name in ("wikitext", KNOWN["wikitext"][0]):
        return True
    if not given.path.is_dir():
        return file_format(given.path) == "text"
    formats = {file_format(file) for file in data_files(given.path)}
    return formats == {"text"}


def _where(given: DataName, part: str) -> dict[str, Any]:
    path, split = given.path, given.split
    part_of = {} if split is None else {"split": split}
    if given.name in KNOWN and not path.exists():
        name, configuration, measured = KNOWN[given.name]
        part_of = {"split": split or (measured if part == TEST else part)}
        return {"path": name, "name": given.configuration or configuration, **part_of}
    if path.is_file():
        if split is not None or given.configuration is not None:
            raise DataError(f"{path} is one file; a split is a part of a folder or of a data set on the Hub")
        return one_file(path)
    named = {} if given.configuration is None else {"name": given.configuration}
    if path.is_dir():
        return {**folder_of_files(given), **part_of}
    if is_format(given.name):
        raise DataError(
            f"{given.name!r} is a format, not data; give a file, a folder or the id of a data set"
        )
    if file_format(path) is not None or given.name.startswith((".", "/", "~")):
        raise DataError(f"{given.name} does not exist")
    return {"path": given.name, **named, **part_of}


def find_columns(record: Record, choices: Iterable[tuple[str, ...]], what: str) -> tuple[str, ...]:
    """Find the first of several choices of columns that a record has.

    Raises:
        DataError: It has none of them.
    """
    for names in choices:
        if all(name in record for name in names):
            return names
    wanted = " or ".join(" and ".join(names) for names in choices)
    raise DataError(f"the data has columns {', '.join(record)}; {what} are read from {wanted}")


def find_column(record: Record, names: Iterable[str], what: str) -> str:
    """Find the first of several columns that a record has.

    Raises:
        DataError: It has none of them.
    """
    return find_columns(record, [(name,) for name in names], what)[0]
