"""Rows: all of the text, in an order that a number alone decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import learners
import pytest
from transformers import AutoTokenizer

from gqkva_convert.data.tasks import CAUSAL
from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.errors import DataError
from gqkva_convert.uptraining.rows.maker import RowMaker
from gqkva_convert.uptraining.rows.stored import stored_rows
from gqkva_convert.uptraining.rows.streamed import StreamedRows

# Readers of datasets leave files open that are not read to their end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


def maker(tokenizer: Any, data: Path, length: int = 16, *, packing: bool = True) -> RowMaker:
    return RowMaker(CAUSAL, tokenizer, length, str(data), packing=packing)


@pytest.mark.parametrize("packing", [True, False])
def test_every_token_is_in_one_row(packing: bool, tokenizer: Any, tmp_path: Path) -> None:
    """Texts stand between their marks, in order; only the last tokens wait for more."""
    file = learners.write_texts(tmp_path / "texts.jsonl", 40)
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    made = maker(tokenizer, file, packing=packing)
    made.add([{"text": text} for text in texts])
    wanted = [token for text in texts for token in [0, *tokenizer(text)["input_ids"], 0]]
    found = [token for row in made.ready for token in row["input_ids"]]
    if packing:
        assert found == wanted[: len(wanted) // 16 * 16]
        assert {len(row["input_ids"]) for row in made.ready} == {16}
        begun = {at for at in range(1, len(found)) if found[at - 1] == found[at] == 0} | {0}
        starts = {16 * n + s for n, row in enumerate(made.ready) for s in row["starts"]}
        assert starts == begun | set(range(0, len(found), 16))
    else:
        assert len(wanted) - len(found) < 40  # single last tokens have nothing to predict
        assert all(row["starts"] == [0] and 2 <= len(row["input_ids"]) <= 16 for row in made.ready)


def test_lines_of_one_text_are_one_text(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("".join(f"line {number} of a book\n" for number in range(100)))
    rows = stored_rows(maker(tokenizer, file), wanted_tokens=10**6, held_out=4, seed=0)
    text = tokenizer.decode([t for number in range(len(rows.rows)) for t in rows.rows[number]["input_ids"]])
    assert file.read_text().startswith(text)
    assert all(rows.rows[number]["starts"] == [0] for number in range(len(rows.rows)))


def stored(tokenizer: Any, file: Path, seed: int = 0) -> Any:
    return stored_rows(maker(tokenizer, file), wanted_tokens=10**6, held_out=8, seed=seed)


def test_an_epoch_has_every_row_once_and_none_held_out(tokenizer: Any, tmp_path: Path) -> None:
    """In an order that the seed and the epoch decide."""
    rows = stored(tokenizer, learners.write_texts(tmp_path / "texts.jsonl"))
    count = rows.count
    epochs = [[rows.row(number)["row"] for number in range(e * count, (e + 1) * count)] for e in (0, 1)]
    assert (
        sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(rows.held_out), len(rows.held_out) + count))
    )
    assert epochs[0] != epochs[1]
    assert len(rows.held_out) == 8
    assert len(rows.rows) == count + 8
    again = stored(tokenizer, tmp_path / "texts.jsonl")
    assert [again.row(number)["row"] for number in range(count)] == epochs[0]
    other = stored(tokenizer, tmp_path / "texts.jsonl", seed=1)
    assert [other.row(number)["row"] for number in range(count)] != epochs[0]


def test_no_more_rows_are_made_than_the_budget_needs(tokenizer: Any, tmp_path: Path) -> None:
    file = learners.write_texts(tmp_path / "texts.jsonl")
    rows = stored_rows(maker(tokenizer, file), wanted_tokens=320, held_out=4, seed=0)
    assert len(rows.rows) == 24
    assert rows.count == 20


def test_one_row_is_enough_where_others_are_measured_on(tokenizer: Any, tmp_path: Path) -> None:
    """A budget of a single token, say, to measure before training; two are needed to hold one out."""
    file = learners.write_texts(tmp_path / "texts.jsonl")
    rows = stored_rows(maker(tokenizer, file), wanted_tokens=1, held_out=0, seed=0)
    assert (rows.count, rows.held_out) == (1, [])
    assert rows.row(3)["row"] == 0
    with pytest.raises(DataError, match="no row of 50000 tokens"):
        stored_rows(maker(tokenizer, file, 50_000), wanted_tokens=1, held_out=0, seed=0)


def test_rows_are_prepared_once_and_anew_when_the_data_change(tokenizer: Any, tmp_path: Path) -> None:
    file = learners.write_texts(tmp_path / "texts.jsonl")
    first = stored(tokenizer, file).digest
    assert stored(tokenizer, file).digest == first
    learners.write_texts(file, 130)
    assert stored(tokenizer, file).digest != first


@pytest.mark.parametrize("at", [0, 5, 90, 400])
def test_a_stream_goes_on_where_it_was(at: int, tokenizer: Any, tmp_path: Path) -> None:
    """In the first epoch and in later ones, from what the state alone says."""
    file = learners.write_texts(tmp_path / "texts.jsonl", 60)
    unbroken = StreamedRows(maker(tokenizer, file), held_out=4, seed=0)
    wanted = [unbroken.row(number)["input_ids"] for number in range(at + 40)]
    begun = StreamedRows(maker(tokenizer, file), held_out=4, seed=0)
    begun.seek(at)
    state = json.loads(json.dumps(begun.state()))
    resumed = StreamedRows(maker(tokenizer, file), held_out=4, seed=0)
    resumed.restore(state)
    assert [resumed.row(number)["input_ids"] for number in range(at, at + 40)] == wanted[at:]


def test_a_stream_never_trains_on_what_it_holds_out(tokenizer: Any, tmp_path: Path) -> None:
    file = learners.write_texts(tmp_path / "texts.jsonl", 60)
    rows = StreamedRows(maker(tokenizer, file), held_out=4, seed=0)
    held = {tuple(row["input_ids"]) for row in rows.held_out}
    assert not held & {tuple(rows.row(number)["input_ids"]) for number in range(300)}


def test_processes_share_a_stream(tokenizer: Any, tmp_path: Path) -> None:
    """Each leaves out the others' rows."""
    file = learners.write_texts(tmp_path / "texts.jsonl", 60)
    alone = StreamedRows(maker(tokenizer, file), held_out=4, seed=0)
    wanted = [alone.row(number) for number in range(12)]
    for process in (0, 1):
        rows = StreamedRows(maker(tokenizer, file), held_out=4, seed=0)
        mine = [number for number in range(12) if number // 2 % 2 == process]
        assert [rows.row(number) for number in mine] == [wanted[number] for number in mine]


def test_too_little_data_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    file = learners.write_texts(tmp_path / "texts.jsonl", 2)
    with pytest.raises(DataError, match="no row of 512 tokens; give more data"):
        stored_rows(maker(tokenizer, file, 512), wanted_tokens=10**6, held_out=1, seed=0)
    with pytest.raises(DataError, match="the stream ends after 0 rows of 512 tokens"):
        StreamedRows(maker(tokenizer, file, 512), held_out=1, seed=0)
