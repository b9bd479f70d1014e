"""Shapes of records: which columns hold texts, prompts with answers, or chats, and what they are called.

The names are those of TRL's dataset types (https://huggingface.co/docs/trl/dataset_formats) where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gqkva_convert.errors import DataError

Record = dict[str, Any]

TEXT, CHAT, INSTRUCTION, COMPLETION, PREFERENCE, TEXTS = (
    "language modeling",
    "conversational",
    "instruction",
    "prompt-completion",
    "preference",
    "several texts",
)


def is_text(record: Record, *names: str) -> bool:
    """Return whether a record has a text that is not blank under all of some names."""
    return all(isinstance(record[name], str) and record[name].strip() for name in names)


@dataclass(frozen=True)
class Shape:
    """Columns that are read together.

    Attributes:
        kind: Name of the shape.
        columns: Columns that a record must have.
        optional: Columns that are read where there are any.
        read_as: How a record becomes text, for documentation.
    """

    kind: str
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    read_as: str = ""

    @property
    def has_answers(self) -> bool:
        return self.kind not in (TEXT, TEXTS)


_CHAT_EXTRAS = ("system", "tools", "chat_template_kwargs")
_TURNS = "each message a turn of the chat template"
_ANSWERED = "a user's and an assistant's turn of the chat template; without one, Alpaca's prompt"
_JOINED = "texts: the second right behind the first; lists of messages: turns of the chat template"
_EACH = "each column a text of its own"

# The first of which a record has all columns is read.
SHAPES = (
    Shape(TEXT, ("text",), read_as="the text as it is"),
    Shape(CHAT, ("messages",), _CHAT_EXTRAS, _TURNS),
    Shape(CHAT, ("conversations",), _CHAT_EXTRAS, _TURNS),
    Shape(CHAT, ("conversation",), _CHAT_EXTRAS, _TURNS),
    Shape(INSTRUCTION, ("instruction", "output"), ("input", "system", "history"), _ANSWERED),
    Shape(INSTRUCTION, ("instruction", "response"), ("context", "system", "history"), _ANSWERED),
    Shape(
        PREFERENCE, ("prompt", "chosen", "rejected"), ("tools", "chat_template_kwargs"), f"{_JOINED}; chosen"
    ),
    Shape(
        PREFERENCE, ("chosen", "rejected"), ("tools", "chat_template_kwargs"), "chosen as it is, or as turns"
    ),
    Shape(COMPLETION, ("prompt", "completion"), ("label", "tools", "chat_template_kwargs"), _JOINED),
    Shape(INSTRUCTION, ("prompt", "response"), ("system", "history"), _ANSWERED),
    Shape(INSTRUCTION, ("question", "answer"), ("context", "system", "history"), _ANSWERED),
    Shape(INSTRUCTION, ("question", "response"), ("context", "system", "history"), _ANSWERED),
    Shape(INSTRUCTION, ("query", "response"), ("system", "history"), _ANSWERED),
    Shape(INSTRUCTION, ("input", "output"), ("system", "history"), _ANSWERED),
    Shape(TEXT, ("content",), read_as="the text as it is"),
    Shape(TEXT, ("sentence",), read_as="the text as it is"),
    *(
        Shape(TEXTS, names, read_as=_EACH)
        for names in (
            ("sentence1", "sentence2"),
            ("sentence_A", "sentence_B"),
            ("premise", "hypothesis"),
            ("dialogue", "summary"),
            ("document", "summary"),
            ("article", "highlights"),
            ("source", "target"),
        )
    ),
)
# What a column may stand for: those of the shapes, and scores of pairs, labels, images.
_KNOWN = {name for shape in SHAPES for name in (*shape.columns, *shape.optional)} | {
    "score",
    "label",
    "image",
}


@dataclass(frozen=True)
class Match:
    """A shape found in a data set.

    Attributes:
        shape: The shape.
        names: The data's own name of each of its columns that it has.
    """

    shape: Shape
    names: Mapping[str, str]

    def values(self, record: Record) -> Record:
        """Return a record's values by the names of the shape's columns, without those that are None."""
        found = {column: record.get(name) for column, name in self.names.items()}
        return {column: value for column, value in found.items() if value is not None}

    def is_filled(self, record: Record) -> bool:
        """Return whether a record has a value in every column that the shape needs."""
        return all(record.get(self.names[column]) is not None for column in self.shape.columns)


def find_shape(
    record: Record, columns: Sequence[str] = (), *, answers: bool = False, data: str = "the data"
) -> Match | None:
    """Find the shape of a record; None where the columns of every one are empty in it.

    Args:
        record: A record.
        columns: Columns to read, as the user names them; none to look for those of `SHAPES`.
        answers: Look for a shape with answers first, as only their tokens are trained on.
        data: Name of the data, for errors.

    Raises:
        DataError: There is no shape with columns such as these.
    """
    if columns:
        return _asked_shape(record, columns)
    names = {name.casefold(): name for name in record} | {name: name for name in record}
    shapes = sorted(SHAPES, key=lambda shape: not shape.has_answers) if answers else SHAPES
    matches = [
        Match(shape, {name: names[name] for name in (*shape.columns, *shape.optional) if name in names})
        for shape in shapes
        if all(name in names for name in shape.columns)
    ]
    if not matches:
        raise _unknown(record, data)
    return next((match for match in matches if match.is_filled(record)), None)


def _asked_shape(record: Record, columns: Sequence[str]) -> Match | None:
    """Return the shape of columns that were asked for by name."""
    if len(columns) > 1:
        match = Match(Shape(TEXTS, tuple(columns)), {name: name for name in columns})
        return match if any(record.get(name) is not None for name in columns) else None
    (name,) = columns
    if record.get(name) is None:
        return None
    kind, column = (TEXT, "text") if isinstance(record[name], str) else (CHAT, "messages")
    shape = next(shape for shape in SHAPES if shape.kind == kind and shape.columns == (column,))
    extras = {extra: extra for extra in shape.optional if extra in record}
    return Match(shape, {column: name, **extras})


def _unknown(record: Record, data: str) -> DataError:
    texts = [name for name, value in record.items() if isinstance(value, str)]
    example = texts[0] if texts else next(iter(record), "NAME")
    return DataError(
        f"{data} has columns {', '.join(record)}, none of the known shapes (text; messages; instruction and "
        f"output; prompt and completion ...: docs/data.md); name the column of text or messages (--column "
        f"{example}), or what columns stand for (--column prompt=NAME --column completion=NAME)"
    )


def renamed_columns(columns: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Split columns that a user names into those that stand for a known one, and those that are read.

    Args:
        columns: ``NAME``, or ``KNOWN=NAME`` where a column of a shape has another name.

    Returns:
        Known names by the data's own, and the names to read.

    Raises:
        DataError: A name is empty, is given twice, or stands for no known column.
    """
    renamed: dict[str, str] = {}
    read: list[str] = []
    for text in columns:
        known, equals, name = (part.strip() for part in text.partition("="))
        if not known or (equals and not name):
            raise DataError(f"--column {text!r}: give NAME, or KNOWN=NAME")
        if equals and known not in _KNOWN:
            raise DataError(
                f"--column {text}: {known} is no column of a known shape; choose of "
                f"{', '.join(sorted(_KNOWN))}"
            )
        if (known in renamed.values() or name in renamed) if equals else known in read:
            raise DataError(f"--column {', '.join(columns)}: a column is given twice")
        if equals:
            renamed[name] = known
        else:
            read.append(known)
    return renamed, tuple(read)
