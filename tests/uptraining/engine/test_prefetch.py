"""Batches made ahead: in order, each once, and no error is lost."""

from __future__ import annotations

import pytest

from gqkva_convert.uptraining.engine.prefetch import BatchesAhead


def test_each_batch_is_made_once_and_in_order() -> None:
    made: list[tuple[int, int]] = []

    def make(step: int, number: int) -> dict[str, int]:
        made.append((step, number))
        return {"step": step}

    batches = BatchesAhead(make, lambda step, number: (step + 1, number) if step < 4 else None)
    assert [batches.take((step, 0))["step"] for step in range(5)] == list(range(5))
    assert made == [(step, 0) for step in range(5)]


def test_a_run_that_goes_back_gets_what_it_asks_for() -> None:
    batches = BatchesAhead(lambda step, number: {"step": step}, lambda step, number: (step + 1, number))
    assert [batches.take((step, 0))["step"] for step in (0, 1, 0, 1, 7)] == [0, 1, 0, 1, 7]


def test_an_error_comes_where_its_batch_is_taken() -> None:
    def make(step: int, number: int) -> dict[str, int]:
        if step == 2:
            raise ValueError("a picture is broken")
        return {}

    batches = BatchesAhead(make, lambda step, number: (step + 1, number))
    batches.take((0, 0))
    batches.take((1, 0))
    with pytest.raises(ValueError, match="a picture is broken"):
        batches.take((2, 0))
