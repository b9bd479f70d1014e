"""The batch of a step, pass and process: its rows, and what belongs to them alone."""

from __future__ import annotations

from typing import Any

import torch

from gqkva_convert.uptraining.engine.feed import Feed
from gqkva_convert.uptraining.objectives.resampling import NUMBERS
from gqkva_convert.uptraining.rows.batches import StepPlan
from gqkva_convert.uptraining.rows.row import Row, Rows


class Counted(Rows):
    """Row n holds the number n."""

    def row(self, number: int) -> Row:
        return {"input_ids": [number], "row": 100 + number}


class Collator:
    def batch(self, rows: list[Row], numbers: list[int]) -> dict[str, Any]:
        assert [row["input_ids"][0] for row in rows] == numbers
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}


class Stored:
    def of(self, rows: list[Row]) -> dict[str, Any]:
        return {"top_indices": torch.tensor([row["row"] for row in rows])}


def test_every_process_trains_on_its_rows_of_the_pass() -> None:
    feed = Feed(Counted(), Collator(), StepPlan(batch_size=12, per_device=2, processes=3))
    assert feed.batch(1, 1, 2)["input_ids"].flatten().tolist() == [22, 23]
    assert set(feed.batch(0, 0, 0)) == {"input_ids"}


def test_what_a_stored_teacher_said_belongs_to_the_rows_as_they_are_stored() -> None:
    """Rows come in another order in every epoch; the teacher's tokens are found by their place on disk."""
    feed = Feed(Counted(), Collator(), StepPlan(4, 2, 1), Stored())  # type: ignore[arg-type]
    assert feed.batch(0, 1, 0)["top_indices"].tolist() == [102, 103]


def test_resampling_goes_by_the_numbers_of_rows() -> None:
    feed = Feed(Counted(), Collator(), StepPlan(4, 2, 1), resampled=True)
    assert feed.batch(2, 0, 0)[NUMBERS].tolist() == [8, 9]
