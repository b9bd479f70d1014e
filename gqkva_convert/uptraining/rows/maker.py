"""Rows made of records: tokenised, cut, packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gqkva_convert.data.documents import DocumentReader, Reading
from gqkva_convert.data.pairs import COMPARED, TARGETS, PairReader
from gqkva_convert.data.records import is_running_text, read_score, score_column
from gqkva_convert.data.sequences import cut_texts, divide_texts, tokenise_documents
from gqkva_convert.data.shapes import Record
from gqkva_convert.data.tasks import CAUSAL, EMBEDDING, MASKED, TO_TARGET
from gqkva_convert.errors import DataError
from gqkva_convert.uptraining.rows.row import ANSWERS, Row


class RowMaker:
    """Makes rows of records: tokenises texts, cuts and packs them.

    Args:
        task: Name of the task.
        tokenizer: The model's own.
        length: Most tokens of a row.
        packing: Whether a row takes several texts.
        data: Name of the data.
        columns: Columns that a user asks for.
        answers: Whether the loss is that of an assistant's tokens alone.

    Raises:
        DataError: The tokenizer lacks what the task needs.
    """

    def __init__(
        self,
        task: str,
        tokenizer: Any,
        length: int,
        data: str,
        *,
        packing: bool,
        columns: Sequence[str] = (),
        answers: bool = False,
    ) -> None:
        if task == MASKED and tokenizer.mask_token_id is None:
            raise DataError("the tokenizer has no mask token, which masked language modelling needs")
        if task in (MASKED, TO_TARGET, EMBEDDING) and tokenizer.pad_token_id is None:
            raise DataError("the tokenizer has no padding token, which batches of texts need")
        if answers and task != CAUSAL:
            raise DataError("assistant_only_loss is for causal language models; leave it out")
        self.task = task
        self.tokenizer = tokenizer
        self.columns = tuple(columns)
        self.answers = answers
        self.length = length
        self.packing = packing
        self.data = data
        # Whether records are lines of one text.
        self.running = is_running_text(data)
        self.ready: list[Row] = []
        self.made = 0
        self._texts = DocumentReader(data, tokenizer, columns, answers=answers)
        self._pairs = PairReader(data, COMPARED if task == EMBEDDING else TARGETS, columns)
        self._left: list[int] = []
        # Which of these tokens answer, where only they count.
        self._answering: list[bool] = []
        self._starts: list[int] = []

    @property
    def reading(self) -> Reading | None:
        """Describe what is read; None before the first record with a text."""
        return (self._texts if self.task in (CAUSAL, MASKED) else self._pairs).reading

    @property
    def identity(self) -> list[Any]:
        """Return what decides the rows of equal data: the task and its settings, and the chat template."""
        template = getattr(self.tokenizer, "chat_template", None)
        settings = [self.task, self.length, self.packing, self.running]
        return [*settings, list(self.columns), self.answers, template]

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
        self._left, self._answering, self._starts = [], [], []

    def state(self) -> dict[str, Any]:
        return {
            "left": self._left,
            "answering": self._answering,
            "starts": self._starts,
            "ready": self.ready,
            "made": self.made,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._left, self._starts = list(state["left"]), list(state["starts"])
        self._answering = list(state.get("answering", ()))  # runs of before have none
        self.ready, self.made = list(state["ready"]), state["made"]

    def _add_texts(self, records: Sequence[Record]) -> None:
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        documents = list(self._texts.read(records, keep_blank=self.running))
        found = tokenise_documents(self.tokenizer, documents, joined=self.running)
        # Running text is one document, and a chat template writes its special tokens itself.
        bare = [self.running] if self.running else [document.is_rendered for document in documents]
        for (ids, answering), is_bare in zip(found, bare, strict=False):
            begin = [] if is_bare or first is None else [first]
            end = [] if is_bare or last is None else [last]
            mask = [False for _ in begin] + (answering or []) + [True for _ in end] if self.answers else []
            self._fill([*begin, *ids, *end], mask, begins=not self.running)

    def _fill(self, ids: list[int], answering: list[bool], *, begins: bool) -> None:
        """Add a text to the open row and the rows after it."""
        if not self.packing:
            for start in range(0, len(ids), self.length):
                span = slice(start, start + self.length)
                self._finish(ids[span], answering[span], [0])
            return
        if begins or not self._starts:
            self._starts.append(len(self._left))
        self._left += ids
        self._answering += answering
        while len(self._left) >= self.length:
            starts = [start for start in self._starts if start < self.length]
            self._finish(self._left[: self.length], self._answering[: self.length], starts)
            self._left, self._answering = self._left[self.length :], self._answering[self.length :]
            later = [start - self.length for start in self._starts if start >= self.length]
            # What is left of a text begins the next row, as a text of its own.
            self._starts = [0, *later] if self._left and later[:1] != [0] else later

    def _finish(self, ids: list[int], answering: list[bool], starts: list[int]) -> None:
        """Add a row, unless nothing of it would count in the loss."""
        if len(ids) < 2:
            return
        row: Row = {"input_ids": ids, "starts": starts}
        if self.answers:
            # The first token of a text is predicted by none.
            if not any(answers for at, answers in enumerate(answering) if at not in (0, *starts)):
                return
            row[ANSWERS] = answering
        self.ready.append(row)

    def _add_masked(self, records: Sequence[Record]) -> None:
        texts = [document.text for document in self._texts.read(records)]
        pieces = divide_texts(self.tokenizer, texts, self.length)
        self.ready += [{"input_ids": ids} for ids in pieces if len(ids) > 2]

    def _add_targets(self, records: Sequence[Record]) -> None:
        kept = [pair for pair, _ in self._pairs.read(records)]
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
        kept = list(self._pairs.read(records))
        if not kept:
            return
        sides = [
            cut_texts(self.tokenizer, list(side), self.length)
            for side in zip(*(texts for texts, _ in kept), strict=True)
        ]
        score = score_column(kept[0][1], self._pairs.names, self.data)
        for number, (texts, record) in enumerate(kept):
            row: Row = {"input_ids": list(sides[0][number])}
            if len(texts) == 2:
                row["second_ids"] = list(sides[1][number])
                row["score"] = read_score(record[score], self.data) if score is not None else float("nan")
            self.ready.append(row)
