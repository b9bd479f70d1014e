"""A row of training data, and what a run asks of its rows.

Row ``n`` of a run is the same on any number of processes and after any interruption.
"""

from __future__ import annotations

from typing import Any

from gqkva_convert.data.documents import Reading

Row = dict[str, Any]
# Which tokens of a row count in the loss, where not all do.
ANSWERS = "answers"


class Rows:
    """Rows to train on, by number, and rows to measure on.

    Attributes:
        held_out: Rows to measure on.
        tokens_per_row: Tokens of a row, on average.
        readings: What is read of each data set.
        digest: Names the rows: it is equal for equal data and settings; empty where it is not known.
    """

    held_out: list[Row]
    tokens_per_row: float
    readings: tuple[Reading, ...] = ()
    digest: str = ""

    def row(self, number: int) -> Row:
        """Return the row of a number; numbers may only grow."""
        raise NotImplementedError

    def seek(self, number: int) -> None:
        """Skip all rows before a number, where rows are made in turn."""

    def state(self) -> dict[str, Any]:
        """Return the state from which to resume after the last row; empty where every row is at hand."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from a `state`."""


def row_tokens(row: Row) -> int:
    """Count the tokens of a row."""
    return len(row["input_ids"]) + len(row.get("labels", ())) + len(row.get("second_ids", ()))
