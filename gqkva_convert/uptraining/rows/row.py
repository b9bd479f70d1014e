"""A row of training data, and what a run asks of its rows.

Row ``n`` of a run is the same on any number of processes and after any interruption.
"""

from __future__ import annotations

from typing import Any, Protocol

Row = dict[str, Any]


class Rows(Protocol):
    """Rows to train on, by number, and rows to measure on."""

    held_out: list[Row]
    tokens_per_row: float

    def row(self, number: int) -> Row:
        """The row of a number; numbers may only grow."""
        ...

    def seek(self, number: int) -> None:
        """Leave out all rows before a number."""
        ...

    def state(self) -> dict[str, Any]:
        """What is needed to go on after the last row."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another left off."""
        ...


def row_tokens(row: Row) -> int:
    """Tokens of a row."""
    return len(row["input_ids"]) + len(row.get("labels", ())) + len(row.get("second_ids", ()))
