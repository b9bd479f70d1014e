"""JSON files of records, checked before `datasets` opens them: a row that is no object crashes its reader."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import json
import lzma
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gqkva_convert.errors import DataError

# How compressed files are opened.
_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(importlib.import_module("zstandard").open(path, "rb")),
}
# Longest line that is read at once.
_LINE_BYTES = 1 << 30
_WHITE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"


def _plain(path: Path) -> Any:
    return path.open("rb")


def require_json_rows(path: Path) -> None:
    """Refuse a JSON file that is neither UTF-8 lines of objects, nor one list, nor one object.

    What is inside an object is left to the reader, which says what is wrong there; so this costs little more
    than reading the file.

    Args:
        path: The file, compressed or not.

    Raises:
        DataError: It is damaged; names the line. An archive that does not unfold raises its library's error.
    """
    opener = _OPENERS.get(path.suffix.lower(), _plain)
    with opener(path) as file:
        fault = _first_fault(path, iter(lambda: file.readline(_LINE_BYTES), b""))
    if fault is not None:
        with opener(path) as file:
            _require_whole(path, file, fault)


def _first_fault(path: Path, lines: Iterable[bytes]) -> str | None:
    """Return what is wrong with the first line that is no object, if the file may still be one value."""
    is_first = True
    for number, line in enumerate(lines, 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} holds bytes in line {number} that are no UTF-8 text; mend the line"
            ) from error
        text = (line.removeprefix(_BOM) if number == 1 else line).strip(_WHITE)
        if not text:
            continue
        if not text.startswith(b"{") or not text.endswith(b"}"):
            fault = f"{path}: line {number} is no JSON object; mend or remove it"
            if is_first and text.startswith((b"{", b"[")):
                return fault
            raise DataError(fault)
        is_first = False
    return None


def _require_whole(path: Path, file: Any, fault: str) -> None:
    """Refuse a file that is not one list of objects, one list of texts, or one object."""
    try:
        whole = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(fault) from error
    rows = whole if isinstance(whole, list) else [whole]
    for number, row in enumerate(rows, 1):
        if type(row) not in (dict, str) or type(row) is not type(rows[0]):
            raise DataError(f"{path}: row {number} is not as the first, a JSON object; mend or remove it")
