"""Rows made of records: tokenised, cut, packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gqkva_convert.data.records import (
    PAIR_COLUMNS,
    SINGLE_COLUMNS,
    TARGET_COLUMNS,
    Record,
    find_columns,
    is_running_text,
    read_score,
    score_column,
    text_columns,
)
from gqkva_convert.data.sequences import (
    cut_texts,
    divide_texts,
    is_text,
    read_texts,
    tokenise,
)
from gqkva_convert.data.tasks import CAUSAL, EMBEDDING, MASKED, TO_TARGET
from gqkva_convert.errors import DataError
from gqkva_convert.uptraining.rows.row import Row


class RowMaker:
    """Makes rows of records: tokenises texts, cuts and packs them.

    Args:
        task: Name of the task.
        tokenizer: The model's own.
        length: Most tokens of a row.
        packing: Whether a row takes several texts.
        data: Name of the data.

    Raises:
        DataError: The tokenizer lacks what the task needs.
    """

    def __init__(self, task: str, tokenizer: Any, length: int, data: str, *, packing: bool) -> None:
        if task == MASKED and tokenizer.mask_token_id is None:
            raise DataError("the tokenizer has no mask token, which masked language modelling needs")
        if task in (MASKED, TO_TARGET, EMBEDDING) and tokenizer.pad_token_id is None:
            raise DataError("the tokenizer has no padding token, which batches of texts need")
        self.task = task
        self.tokenizer = tokenizer
        self.length = length
        self.packing = packing
        self.data = data
        # Whether records are lines of one text.
        self.running = is_running_text(data)
        self.ready: list[Row] = []
        self.made = 0
        # Records given, and those of them without the texts that rows are made of.
        self.records = self.textless = 0
        self._left: list[int] = []
        self._starts: list[int] = []

    def add(self, records: Sequence[Record]) -> None:
        """Make rows of some records; what does not fill a row waits for the next."""
        if not records:
            return
        before = len(self.ready)
        self.records += len(records)
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
        self._count_textless(records, text_columns(records[0]))
        return list(read_texts(records, keep_blank=self.running))

    def _count_textless(self, records: Sequence[Record], columns: Sequence[str]) -> None:
        self.textless += sum(not any(isinstance(record[name], str) for name in columns) for record in records)

    def _add_texts(self, records: Sequence[Record]) -> None:
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        begin = [] if self.running or first is None else [first]
        end = [] if self.running or last is None else [last]
        for ids in tokenise(self.tokenizer, self._texts(records), joined=self.running):
            self._fill([*begin, *ids, *end], begins=not self.running)

    def _fill(self, ids: list[int], *, begins: bool) -> None:
        """Add a text to the open row and the rows after it."""
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
        pieces = divide_texts(self.tokenizer, texts, self.length)
        self.ready += [{"input_ids": ids} for ids in pieces if len(ids) > 2]

    def _add_targets(self, records: Sequence[Record]) -> None:
        source, target = find_columns(records[0], TARGET_COLUMNS, "texts")
        self._count_textless(records, (source, target))
        kept = [
            (record[source], record[target])
            for record in records
            if isinstance(record[source], str) and isinstance(record[target], str)
        ]
        if kept:
            inputs, labels = ([pair[side] for pair in kept] for side in (0, 1))
            sources = cut_texts(self.tokenizer, inputs, self.length)
            targets = cut_texts(self.tokenizer, labels, self.length, as_target=True)
            self.ready += [
                {"input_ids": list(ids), "labels": list(wanted)}
                for ids, wanted in zip(sources, targets, strict=True)
                if ids and wanted
            ]

    def _add_pairs(self, records: Sequence[Record]) -> None:
        names = find_columns(records[0], (*PAIR_COLUMNS, *SINGLE_COLUMNS), "sentence pairs or texts")
        score = score_column(records[0], names, self.data)
        self._count_textless(records, names)
        records = [record for record in records if is_text(record, *names)]
        if not records:
            return
        sides = [
            cut_texts(self.tokenizer, [record[name] for record in records], self.length) for name in names
        ]
        for number, record in enumerate(records):
            row: Row = {"input_ids": list(sides[0][number])}
            if len(names) == 2:
                row["second_ids"] = list(sides[1][number])
                row["score"] = read_score(record[score], self.data) if score is not None else float("nan")
            self.ready.append(row)
