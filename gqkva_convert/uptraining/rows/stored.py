"""Rows prepared on disk: once for the same data and settings, in an order that the seed fixes."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.cache import make_cache, unfinished
from gqkva_convert.checkpoint.jsonfile import read_json, replace_json
from gqkva_convert.data.documents import Reading
from gqkva_convert.data.names import DataName
from gqkva_convert.data.records import read_records
from gqkva_convert.data.sequences import TEXTS, in_groups
from gqkva_convert.errors import DataError
from gqkva_convert.uptraining.rows.maker import RowMaker
from gqkva_convert.uptraining.rows.row import Row, Rows, row_tokens

# Changes when the same records would give other rows, or others are held out.
_FORMAT = 4
# Rows written at once.
_WRITTEN = 512
# At most one row in this many is held out, so that small data keep most of their rows for training.
_HELD_OUT_ONE_IN = 10


class StoredRows(Rows):
    """Rows that are all on disk; a new order in every epoch.

    Args:
        rows: The rows.
        held_out: How many of the first to measure on: the same ones whatever the budget.
        seed: Seed of the order.
        size: Tokens of a row.
        digest: Names the rows: of equal data and settings it is equal.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        held_out: int,
        seed: int,
        size: Callable[[Row], int],
        digest: str = "",
    ) -> None:
        self.rows = rows
        self.digest = digest
        self.count = len(rows) - held_out
        self.seed = seed
        self.held_out = [rows[number] for number in range(held_out)]
        self._first = held_out
        some = range(held_out, len(rows), max(1, self.count // 256))
        self.tokens_per_row = sum(size(rows[number]) for number in some) / len(some)
        self._epoch, self._order = -1, []  # type: ignore[var-annotated]

    def keep(self, budget: float) -> None:
        """Train on at most `budget` rows, besides those held out."""
        self.count = max(1, min(self.count, math.ceil(budget)))

    def row(self, number: int) -> Row:
        epoch, place = divmod(number, self.count)
        if epoch != self._epoch:
            order = list(range(self.count))
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            self._epoch, self._order = epoch, order
        stored = self._first + self._order[place]
        return {**self.rows[stored], "row": stored}


def stored_rows(maker: RowMaker, *, wanted_tokens: int, held_out: int, seed: int) -> StoredRows:
    """Prepare rows on disk, once for the same data and settings, and open them.

    Args:
        maker: Makes the rows of its data.
        wanted_tokens: No more rows are made than these fill, held-out ones besides.
        held_out: Most rows held out; 0 where rows for measuring come from elsewhere.
        seed: Seed of the order.

    Raises:
        DataError: There are too few.
    """
    path = _rows_file(maker, wanted_tokens, held_out, seed)
    about = path.with_suffix(".json")
    if not (path.is_file() and about.is_file()):
        _write_rows(path, _made_rows(maker, wanted_tokens, held_out, seed))
        replace_json(about, None if maker.reading is None else maker.reading.to_dict())
    import datasets

    found: Any = datasets.Dataset.from_file(str(path))
    count = len(found)
    if count < (2 if held_out else 1):
        path.unlink(missing_ok=True)  # so that whoever tries again is told as much
        reading, without = maker.reading, ""
        if reading is None:
            without = " (no record holds text)"
        elif reading.empty:
            without = f" ({reading.empty} of {reading.rows} records hold no text)"
        found_rows = "no row" if count == 0 else "a single row"
        if maker.answers:
            without += ", or none with an assistant's tokens"
        raise DataError(
            f"{maker.data}: {found_rows} of {maker.length} tokens{without}; give more data or a smaller "
            "--length"
        )
    kept = min(held_out, max(1, count // _HELD_OUT_ONE_IN))
    rows = StoredRows(found, kept, seed, row_tokens, path.stem)
    rows.keep(wanted_tokens / rows.tokens_per_row)
    read = read_json(about)
    rows.readings = () if read is None else (Reading(**read),)
    return rows


def _made_rows(maker: RowMaker, wanted_tokens: int, held_out: int, seed: int) -> Iterator[Row]:
    tokens, count = 0, 0
    for some in in_groups(read_records(maker.data, seed, maker.columns), TEXTS):
        maker.add(some)
        while maker.ready:
            row = maker.ready.pop(0)
            tokens, count = tokens + row_tokens(row), count + 1
            yield row
            if tokens >= wanted_tokens + held_out * tokens / count:
                return


def _rows_file(maker: RowMaker, wanted_tokens: int, held_out: int, seed: int) -> Path:
    given = DataName.read(maker.data)
    path = given.path
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    tokenizer = getattr(maker.tokenizer, "backend_tokenizer", None)
    identity = [
        _FORMAT,
        maker.data if not files else given.renamed(str(path.resolve())),
        [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        repr(maker.tokenizer) if tokenizer is None else tokenizer.to_str(),
        [*maker.identity, wanted_tokens, held_out, seed],
    ]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return make_cache("rows") / f"{digest[:32]}.arrow"


def _write_rows(path: Path, rows: Iterator[Row]) -> None:
    """Write rows as an Arrow stream, which appears under its name when it is complete."""
    import pyarrow

    scratch = path.with_name(unfinished(path.name))
    try:
        with pyarrow.OSFile(str(scratch), "wb") as sink:
            writer = None
            for some in in_groups(rows, _WRITTEN):
                table = pyarrow.Table.from_pylist(some)
                writer = writer or pyarrow.ipc.new_stream(sink, table.schema)
                writer.write_table(table)
            if writer is None:
                empty = pyarrow.schema([("input_ids", pyarrow.list_(pyarrow.int64()))])
                writer = pyarrow.ipc.new_stream(sink, empty)
            writer.close()
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
