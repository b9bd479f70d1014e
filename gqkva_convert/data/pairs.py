"""Pairs of texts: two that are compared, or a source and its target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gqkva_convert.data.documents import Reading, shortened
from gqkva_convert.data.records import find_columns
from gqkva_convert.data.shapes import (
    COMPLETION,
    INSTRUCTION,
    SHAPES,
    TEXT,
    TEXTS,
    Record,
    is_text,
    renamed_columns,
)
from gqkva_convert.errors import DataError


class Columns(NamedTuple):
    """Columns that texts are looked for in, best first, and what these are called in an error."""

    choices: tuple[tuple[str, ...], ...]
    what: str


_SINGLE = tuple(shape.columns for shape in SHAPES if shape.kind == TEXT)
_TEXTS = tuple(shape.columns for shape in SHAPES if shape.kind == TEXTS)
_ANSWERED = tuple(
    shape.columns[:2]
    for shape in SHAPES
    if shape.kind in (INSTRUCTION, COMPLETION) or shape.columns[:2] == ("prompt", "chosen")
)
_PAIRS = tuple(names for names in _TEXTS if names[0] in ("sentence1", "sentence_A", "premise"))

COMPARED = Columns((*_PAIRS, *_SINGLE), "sentence pairs or texts")
TARGETS = Columns((*(names for names in _TEXTS if names not in _PAIRS), *_ANSWERED), "texts and targets")
# A text alone may be halved into a source and a target.
TARGETS_OR_TEXTS = Columns((*TARGETS.choices, *_SINGLE), "texts")


class PairReader:
    """Reads pairs of texts, or single texts where columns of one count.

    What an instruction or a question is given besides stands behind it, on a line of its own.

    Args:
        data: Name of the data.
        wanted: Columns to look for.
        columns: Columns that a user asks for, as `renamed_columns` takes them.

    Attributes:
        reading: What is read, once the first record was.
        names: Columns of the texts.
    """

    def __init__(self, data: str, wanted: Columns, columns: Sequence[str] = ()) -> None:
        self.data = data
        self.wanted = wanted
        self.columns = renamed_columns(columns)[1]
        self.names: tuple[str, ...] = ()
        self.reading: Reading | None = None
        self._given: str | None = None

    def read(self, records: Iterable[Record]) -> Iterator[tuple[tuple[str, ...], Record]]:
        """Yield the texts of records that have one under every column, each with its record.

        Raises:
            DataError: The records have no such texts.
        """
        for record in records:
            reading = self._begun(record)
            texts = self._texts(record)
            reading.count(record, None if texts is None else " | ".join(map(shortened, texts)))
            if texts is not None:
                yield texts, record

    def _begun(self, record: Record) -> Reading:
        if self.reading is None:
            sizes = {len(names) for names in self.wanted.choices}
            if self.columns and len(self.columns) not in sizes:
                raise DataError(f"{self.data}: name two columns of texts (--column FIRST --column SECOND)")
            self.names = self.columns or find_columns(record, self.wanted.choices, self.wanted.what)
            shape = next((each for each in SHAPES if each.columns[:2] == self.names), None)
            extras = () if shape is None or self.columns else shape.optional
            self._given = next(
                (name for name in ("input", "context") if name in extras and name in record), None
            )
            used = [*self.names, *([self._given] if self._given else [])]
            kind = "pairs of texts" if len(self.names) == 2 else TEXT
            self.reading = Reading(self.data, kind, used)
        return self.reading

    def _texts(self, record: Record) -> tuple[str, ...] | None:
        for name in self.names:
            if isinstance(record[name], list):
                raise DataError(
                    f"{self.data}: {name} holds a list, such as a chat, which is no text of a pair"
                )
        if not is_text(record, *self.names) or record.get("label") is False:
            return None
        first, *others = (str(record[name]) for name in self.names)
        if self._given is not None and is_text(record, self._given):
            first = f"{first}\n{record[self._given]}"
        return (first, *others)
