"""Rows of training data: tokenised, packed, in an order that the seed fixes, each found again by its number.

Row ``n`` of a run is the same on any number of processes and after any interruption.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from gqkva_convert.calibration.cache import make_cache
from gqkva_convert.data.records import (
    PAIR_COLUMNS,
    TARGET_COLUMNS,
    TEXT_COLUMNS,
    Record,
    find_columns,
    is_running_text,
    load_records,
    read_score,
    score_column,
    text_columns,
)
from gqkva_convert.data.tasks import CAUSAL, EMBEDDING, MASKED, TO_TARGET
from gqkva_convert.errors import DataError

Row = dict[str, Any]
# Changes when the same records would give other rows, or others are held out.
_FORMAT = 2
# Texts tokenised at once, rows that a stream shuffles among, rows written at once.
_TEXTS, _BUFFER, _WRITTEN = 256, 2048, 512
# Rows that tell how long a stream's are.
_LOOKED_AT = 32
# Held out of small data: no more than one row in so many.
_HELD_OUT_ONE_IN = 10


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


class StoredRows:
    """Rows that are all at hand; a new order in every epoch.

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

    def row(self, number: int) -> Row:
        epoch, place = divmod(number, self.count)
        if epoch != self._epoch:
            order = list(range(self.count))
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            self._epoch, self._order = epoch, order
        stored = self._first + self._order[place]
        return {**self.rows[stored], "row": stored}

    def seek(self, number: int) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class StreamedRows:
    """Rows made as they are needed, shuffled among those next in line.

    Args:
        open_records: Opens the records from their beginning, as a `datasets.IterableDataset`, which can tell
            where it stands.
        maker: Makes rows of records.
        held_out: How many of the first to measure on.
        seed: Seed of the order.
    """

    def __init__(self, open_records: Callable[[], Any], maker: RowMaker, held_out: int, seed: int) -> None:
        self.open_records = open_records
        self.records = open_records()
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
            some = list(itertools.islice(self._iterator, _TEXTS))
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
            self.records = self.open_records()
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


class RowMaker:
    """Makes rows of records: tokenises texts, cuts and packs them.

    Args:
        task: Name of the task.
        tokenizer: The model's own.
        length: Most tokens of a row.
        packing: Whether a row takes several texts.
        data: Name of the data.
    """

    def __init__(self, task: str, tokenizer: Any, length: int, data: str, *, packing: bool) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.length = length
        self.packing = packing
        self.data = data
        # Whether records are lines of one text.
        self.running = is_running_text(data)
        self.ready: list[Row] = []
        self.made = 0
        self._left: list[int] = []
        self._starts: list[int] = []

    def add(self, records: Sequence[Record]) -> None:
        """Make rows of some records; what does not fill a row waits for the next."""
        if not records:
            return
        before = len(self.ready)
        if self.task == CAUSAL:
            self._add_texts(records)
        elif self.task == MASKED:
            self._add_masked(records)
        elif self.task == TO_TARGET:
            self._add_targets(records)
        else:
            self._add_pairs(records)
        self.made += len(self.ready) - before

    def restart(self) -> None:
        """Forget what waits for the next row."""
        self._left, self._starts = [], []

    def state(self) -> dict[str, Any]:
        return {"left": self._left, "starts": self._starts, "ready": self.ready, "made": self.made}

    def restore(self, state: dict[str, Any]) -> None:
        self._left, self._starts = list(state["left"]), list(state["starts"])
        self.ready, self.made = list(state["ready"]), state["made"]

    def _texts(self, records: Sequence[Record]) -> list[str]:
        columns = text_columns(records[0])
        texts = [record[name] for record in records for name in columns]
        return [text for text in texts if isinstance(text, str) and (text.strip() or self.running)]

    def _add_texts(self, records: Sequence[Record]) -> None:
        texts = self._texts(records)
        if self.running:
            joint = "".join(text.rstrip("\n") + "\n" for text in texts)
            self._fill(self.tokenizer(joint, add_special_tokens=False)["input_ids"], begins=False)
            return
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []:
            begin = [] if first is None else [first]
            end = [] if last is None else [last]
            self._fill([*begin, *ids, *end], begins=True)

    def _fill(self, ids: list[int], *, begins: bool) -> None:
        """Put a text into the open row and the rows after it."""
        if not self.packing:
            for start in range(0, len(ids), self.length):
                part = ids[start : start + self.length]
                if len(part) > 1:
                    self.ready.append({"input_ids": part, "starts": [0]})
            return
        if begins or not self._starts:
            self._starts.append(len(self._left))
        self._left += ids
        while len(self._left) >= self.length:
            starts = [start for start in self._starts if start < self.length]
            self.ready.append({"input_ids": self._left[: self.length], "starts": starts})
            self._left = self._left[self.length :]
            later = [start - self.length for start in self._starts if start >= self.length]
            # What is left of a text begins the next row, as a text of its own.
            self._starts = [0, *later] if self._left and later[:1] != [0] else later

    def _add_masked(self, records: Sequence[Record]) -> None:
        texts = [text for text in self._texts(records) if text.strip()]
        if not texts:
            return
        encoded = self.tokenizer(
            texts, truncation=True, max_length=self.length, return_overflowing_tokens=True
        )
        for ids in encoded["input_ids"]:
            if len(ids) > 2:
                self.ready.append({"input_ids": list(ids)})

    def _add_targets(self, records: Sequence[Record]) -> None:
        source, target = find_columns(records[0], TARGET_COLUMNS, "texts")
        kept = [
            (record[source], record[target])
            for record in records
            if isinstance(record[source], str) and isinstance(record[target], str)
        ]
        if kept:
            inputs, labels = ([pair[side] for pair in kept] for side in (0, 1))
            cut = {"truncation": True, "max_length": self.length}
            rows = zip(
                self.tokenizer(inputs, **cut)["input_ids"],
                self.tokenizer(text_target=labels, **cut)["input_ids"],
                strict=True,
            )
            self.ready += [{"input_ids": list(ids), "labels": list(wanted)} for ids, wanted in rows]

    def _add_pairs(self, records: Sequence[Record]) -> None:
        choices = [*PAIR_COLUMNS, *((name,) for name in TEXT_COLUMNS)]
        names = find_columns(records[0], choices, "sentence pairs or texts")
        score = score_column(records[0], names, self.data)
        records = [
            record
            for record in records
            if all(isinstance(record[n], str) and record[n].strip() for n in names)
        ]
        if not records:
            return
        cut = {"truncation": True, "max_length": self.length}
        sides = [self.tokenizer([record[name] for record in records], **cut)["input_ids"] for name in names]
        for number, record in enumerate(records):
            row: Row = {"input_ids": list(sides[0][number])}
            if len(names) == 2:
                row["second_ids"] = list(sides[1][number])
                row["score"] = read_score(record[score], self.data) if score is not None else float("nan")
            self.ready.append(row)


def row_tokens(row: Row) -> int:
    """Tokens of a row."""
    return len(row["input_ids"]) + len(row.get("labels", ())) + len(row.get("second_ids", ()))


def stored_rows(
    data: str, maker: RowMaker, *, wanted_tokens: int, held_out: int, apart: bool, seed: int
) -> StoredRows:
    """Rows prepared on disk, once for the same data and settings.

    Args:
        data: What to read.
        maker: Makes the rows.
        wanted_tokens: No more rows are made than these fill, held-out ones besides.
        held_out: Most rows held out.
        apart: Whether rows for measuring come from elsewhere, so that none is held out here.
        seed: Seed of the order.

    Raises:
        DataError: There are too few.
    """
    path = _rows_file(data, maker, wanted_tokens, held_out, seed)
    if not path.is_file():
        _write_rows(path, _made_rows(data, maker, wanted_tokens, held_out, seed))
    import datasets

    found: Any = datasets.Dataset.from_file(str(path))
    count = len(found)
    if count < 2:
        raise DataError(
            f"{data}: {'no row' if count == 0 else 'a single row'} of {maker.length} tokens; give more data "
            "or a smaller --length"
        )
    kept = 0 if apart else max(1, min(held_out, count // _HELD_OUT_ONE_IN))
    return StoredRows(found, kept, seed, row_tokens, path.stem)


def _made_rows(data: str, maker: RowMaker, wanted_tokens: int, held_out: int, seed: int) -> Iterator[Row]:
    from gqkva_convert.data.records import read_records

    records = read_records(data, seed)
    tokens, count = 0, 0
    while some := list(itertools.islice(records, _TEXTS)):
        maker.add(some)
        while maker.ready:
            row = maker.ready.pop(0)
            tokens, count = tokens + row_tokens(row), count + 1
            yield row
            if tokens >= wanted_tokens + held_out * tokens / count:
                return


def _rows_file(data: str, maker: RowMaker, wanted_tokens: int, held_out: int, seed: int) -> Path:
    path = Path(data)
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    tokenizer = getattr(maker.tokenizer, "backend_tokenizer", None)
    identity = [
        _FORMAT,
        data if not files else str(path.resolve()),
        [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        repr(maker.tokenizer) if tokenizer is None else tokenizer.to_str(),
        [maker.task, maker.length, maker.packing, maker.running, wanted_tokens, held_out, seed],
    ]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return make_cache("rows") / f"{digest[:32]}.arrow"


def _write_rows(path: Path, rows: Iterator[Row]) -> None:
    """Write rows as an Arrow stream, which appears under its name when it is complete."""
    import pyarrow

    scratch = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with pyarrow.OSFile(str(scratch), "wb") as sink:
            writer = None
            while some := list(itertools.islice(rows, _WRITTEN)):
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


def streamed_rows(data: str, maker: RowMaker, *, held_out: int, seed: int) -> StreamedRows:
    """Rows made while training.

    Raises:
        DataError: There are too few.
    """
    return StreamedRows(lambda: load_records(data, streaming=True), maker, held_out, seed)


def make_maker(task: str, tokenizer: Any, length: int, data: str, *, packing: bool) -> RowMaker:
    """A maker of rows for a task.

    Raises:
        DataError: The tokenizer lacks what the task needs.
    """
    if task == MASKED and tokenizer.mask_token_id is None:
        raise DataError("the tokenizer has no mask token, which masked language modelling needs")
    if task in (MASKED, TO_TARGET, EMBEDDING) and tokenizer.pad_token_id is None:
        raise DataError("the tokenizer has no padding token, which batches of texts need")
    return RowMaker(task, tokenizer, length, data, packing=packing)
