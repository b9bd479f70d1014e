"""Records of data sets: local files, folders of images, or the Hub; all read through `datasets`."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gqkva_convert.errors import DataError

Record = dict[str, Any]

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
_BUILDERS = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".gz": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
TEXT_COLUMNS = ("text", "content", "sentence")
PAIR_COLUMNS = (("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("premise", "hypothesis"))
SINGLE_COLUMNS = tuple((name,) for name in TEXT_COLUMNS)
_SCORED_PAIR = ("sentence1", "sentence2", "score")
SCORE_COLUMNS = ("score", "label", "similarity_score")
LABEL_COLUMNS = ("label", "labels", "fine_label")
TARGET_COLUMNS = (
    ("dialogue", "summary"),
    ("document", "summary"),
    ("article", "highlights"),
    ("source", "target"),
    ("input", "output"),
)
IMAGE_COLUMNS = ("image", "img", "pixel_values")
# Records that a shuffle holds at once.
_SHUFFLE_BUFFER = 10_000


def load_records(data: str, *, streaming: bool, part: str = TRAIN, split: str | None = None) -> Any:
    """Open a data set with `datasets`.

    Args:
        data: A file, a folder, a Hub id (``ID:CONFIGURATION`` where it has several), or a short name: of
            `KNOWN`, or `LIBRARY`.
        streaming: Whether records are read as they are asked for, or prepared on disk beforehand.
        part: Which part of a data set that has several: `TRAIN`, or `TEST` (validation where there is none).
        split: Its name for that part, where it is another.

    Raises:
        DataError: It cannot be found or read.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"data are read with the package datasets, which does not load: {error}") from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it cannot read we say ourselves
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not our user's business
    with _one_line(data):
        if data == LIBRARY and not Path(data).exists():
            if split is not None and split not in (TRAIN, TEST):
                raise DataError(
                    f"{LIBRARY} has the parts {TRAIN} and {TEST}, no {split}; leave out the split"
                )
            return _library(split or part, streaming=streaming)
        found: Any = datasets.load_dataset(**_where(data, part, split), streaming=streaming)
        if not isinstance(found, (datasets.IterableDataset, datasets.Dataset)):
            found = found[next(name for name in (*_PARTS[part], *found) if name in found)]
        for name, feature in (found.features or {}).items():
            if isinstance(feature, datasets.Image):
                # `read_image` opens them and can name one that is damaged.
                found = found.cast_column(name, datasets.Image(decode=False))
    return found


def _library(part: str, *, streaming: bool) -> Any:
    """Read files of the standard library; for measuring, files the built-in model has not seen."""
    import datasets

    from gqkva_convert.data.python_library import iter_texts

    texts = [text for _, text in iter_texts(held_out=part == TEST)]
    found = datasets.Dataset.from_dict({"text": texts})
    return found.to_iterable_dataset() if streaming else found


def read_records(data: str, seed: int) -> Iterator[Record]:
    """Yield records of a data set, shuffled by the seed unless it is running text.

    Raises:
        DataError: It cannot be found or read.
    """
    found = load_records(data, streaming=True)
    if not is_running_text(data):
        found = found.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
    with _one_line(data):
        yield from found


@contextmanager
def _one_line(data: str) -> Iterator[None]:
    """Return whatever a reader of some format raises as one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        remedy = "give a txt, jsonl, csv or parquet file, a folder of images, or a Hub id"
        if Path(data).is_file():
            remedy = "mend the file (rows are counted from 0)" if " in row " in reason else "mend the file"
        near = difflib.get_close_matches(data, (*KNOWN, LIBRARY), n=1)
        if near and near[0] != data:
            remedy = f"did you mean {near[0]}?"
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
    if data in ("wikitext", KNOWN["wikitext"][0]) or data.startswith(f"{KNOWN['wikitext'][0]}:"):
        return True
    path = Path(data)
    if not path.is_dir():
        return path.suffix == ".txt"
    # As a rule the first file that is found decides.
    kinds = (file.suffix.lower() for file in path.rglob("*"))
    known = (kind for kind in kinds if kind in _BUILDERS or kind in _IMAGES)
    first = next(known, None)
    return first == ".txt" and all(kind == ".txt" for kind in known)


def _where(data: str, part: str, split: str | None) -> dict[str, Any]:
    path = Path(data)
    if data in KNOWN and not path.exists():
        name, configuration, measured = KNOWN[data]
        return {"path": name, "name": configuration, "split": split or (measured if part == TEST else part)}
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise DataError(f"{path}: a file of data ends in {', '.join(_BUILDERS)}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
        if split is not None:
            raise DataError(f"{path} is one file; a split is a part of a folder or of a data set on the Hub")
        names = {"column_names": list(_SCORED_PAIR)} if _is_bare_pairs(path) else {}
        return {"path": _BUILDERS[path.suffix], "data_files": str(path), "split": "train", **names}
    part_of = {} if split is None else {"split": split}
    if path.is_dir():
        images = [file for file in path.rglob("*") if file.suffix.lower() in _IMAGES]
        if images:
            # Folders in it are labels, a single one too, which `datasets` would take for none.
            is_one = len({file.parent for file in images}) == 1 and images[0].parent != path
            labels = {"drop_labels": False} if is_one else {}
            return {"path": "imagefolder", "data_dir": str(path), **labels, **part_of}
        return {"path": str(path), **part_of}
    if data in set(_BUILDERS.values()) or data == "imagefolder":
        raise DataError(f"{data!r} is a format, not data; give a file, a folder or the id of a data set")
    if path.suffix in _BUILDERS or data.startswith((".", "/", "~")):
        raise DataError(f"{data} does not exist")
    name, colon, configuration = data.partition(":")
    return {"path": name, **({"name": configuration} if colon else {}), **part_of}


def _is_bare_pairs(path: Path) -> bool:
    """Return whether a CSV file has no headings: two texts and a number in the first line, too."""
    if path.suffix != ".csv":
        return False
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        first = next(csv.reader(file), [])
    try:
        float(first[2])
    except (IndexError, ValueError):
        return False
    return len(first) == 3


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


def text_columns(record: Record) -> tuple[str, ...]:
    """Find the columns of a record with texts: one, or both sides of a pair, or a dialogue and its summary.

    Raises:
        DataError: There are none.
    """
    alone: list[tuple[str, ...]] = [(name,) for name in TEXT_COLUMNS if name in record]
    choices = alone or [*PAIR_COLUMNS, *TARGET_COLUMNS, (TEXT_COLUMNS[0],)]
    return find_columns(record, choices, "texts")
