"""Rows made as they are needed, from a stream that can tell its position."""

from __future__ import annotations

import itertools
import random
from typing import Any

from gqkva_convert.data.records import load_records, one_line
from gqkva_convert.data.sequences import TEXTS
from gqkva_convert.errors import DataError
from gqkva_convert.uptraining.rows.maker import RowMaker
from gqkva_convert.uptraining.rows.row import Row, Rows, row_tokens

# Rows that are shuffled among.
_BUFFER = 2048
# Rows that tell how long all are.
_LOOKED_AT = 32


class StreamedRows(Rows):
    """Rows made as they are needed, shuffled among those next in line.

    Args:
        maker: Makes rows of the records of its data.
        held_out: How many of the first to measure on.
        seed: Seed of the order.

    Raises:
        DataError: There are too few.
    """

    def __init__(self, maker: RowMaker, *, held_out: int, seed: int) -> None:
        self.records = load_records(maker.data, streaming=True, columns=maker.columns)
        self.maker = maker
        self._epoch_start = 0
        self.random = random.Random(seed)
        self.buffer: list[Row] = []
        self.next = 0
        self._iterator = iter(self.records)
        # The first rows of every epoch are those held out, of the first one as of later ones.
        self._apart = self._skipped = held_out
        self.held_out: list[Row] = [self._made() for _ in range(held_out)]
        self.buffer = [self._made() for _ in range(_LOOKED_AT)]
        self.tokens_per_row = sum(map(row_tokens, self.buffer)) / _LOOKED_AT
        self.readings = () if maker.reading is None else (maker.reading,)

    def row(self, number: int) -> Row:
        self.seek(number)
        self.next += 1
        return self._drawn()

    def seek(self, number: int) -> None:
        while self.next < number:
            self._drawn()
            self.next += 1

    def _drawn(self) -> Row:
        while len(self.buffer) < _BUFFER:
            self.buffer.append(self._made())
        place = self.random.randrange(len(self.buffer))
        self.buffer[place], self.buffer[-1] = self.buffer[-1], self.buffer[place]
        return self.buffer.pop()

    def _made(self) -> Row:
        while True:
            while self.maker.ready and self._skipped < self._apart:
                self.maker.ready.pop(0)
                self._skipped += 1
            if self.maker.ready:
                break
            with one_line(self.maker.data):
                some = list(itertools.islice(self._iterator, TEXTS))
            if some:
                self.maker.add(some)
                continue
            if self.maker.made <= self._apart + self._epoch_start:
                raise DataError(
                    f"the stream ends after {self.maker.made} rows of {self.maker.length} tokens, too few to "
                    "train on; give more data or a smaller --length"
                )
            # The next epoch makes the same rows again: those held out stay out.
            self._epoch_start = self.maker.made
            self.maker.restart()
            self.records = load_records(self.maker.data, streaming=True, columns=self.maker.columns)
            self._iterator = iter(self.records)
            self._skipped = 0
        return self.maker.ready.pop(0)

    def state(self) -> dict[str, Any]:
        version, numbers, gauss = self.random.getstate()
        return {
            "records": self.records.state_dict(),
            "skipped": self._skipped,
            "epoch_start": self._epoch_start,
            "maker": self.maker.state(),
            "buffer": self.buffer,
            "next": self.next,
            "random": [version, list(numbers), gauss],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.records.load_state_dict(state["records"])
        self._iterator = iter(self.records)
        self._skipped, self._epoch_start = state["skipped"], state["epoch_start"]
        self.maker.restore(state["maker"])
        self.buffer, self.next = state["buffer"], state["next"]
        version, numbers, gauss = state["random"]
        self.random.setstate((version, tuple(numbers), gauss))
