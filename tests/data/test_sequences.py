"""Texts as tokens: one way for calibration, evaluation and training."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoTokenizer

from gqkva_convert.data.documents import DocumentReader
from gqkva_convert.data.sequences import (
    decoder_inputs,
    divide_texts,
    encode,
    in_groups,
    pad,
    tokenise,
)
from gqkva_convert.demo_model.demo import MODEL


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


def test_blank_lines_are_kept_where_they_are_lines_of_a_text(tokenizer: Any) -> None:
    """Both sides of pairs are texts; what is no text is skipped."""
    records = [{"text": "a\n"}, {"text": ""}, {"text": None}, {"text": "b"}]

    def texts(records: list[dict[str, Any]], **options: bool) -> list[str]:
        return [document.text for document in DocumentReader("data", tokenizer).read(records, **options)]

    assert texts(records) == ["a\n", "b"]
    assert texts(records, keep_blank=True) == ["a\n", "", "b"]
    assert texts([{"premise": "x", "hypothesis": "y"}]) == ["x", "y"]


def test_joined_records_are_lines_of_one_text(tokenizer: Any) -> None:
    """A line break behind each, whether or not its record ends in one."""
    texts = ["import os\n", "", "import sys"]
    assert tokenise(tokenizer, texts, joined=True) == tokenise(tokenizer, ["import os\n\nimport sys\n"])
    assert len(tokenise(tokenizer, texts)) == 3
    assert tokenise(tokenizer, [], joined=True) == []


def test_a_long_text_is_divided_and_a_short_one_is_not(tokenizer: Any) -> None:
    texts = ["one", "two three four five six seven eight nine ten"]
    whole = tokenise(tokenizer, texts)
    pieces = divide_texts(tokenizer, texts, 4)
    assert pieces[0] == whole[0]
    assert [token for piece in pieces[1:] for token in piece] == whole[1]
    assert max(map(len, pieces)) == 4


def test_batches_are_padded_on_the_right(tokenizer: Any) -> None:
    batch = encode(tokenizer, ["a longer text than the other", "short"], 16)
    mask = batch["attention_mask"]
    assert mask[0].all()
    assert mask[1].tolist() == sorted(mask[1].tolist(), reverse=True)
    ids, present = pad([[5, 6, 7], torch.tensor([8])], -100)
    assert ids.tolist() == [[5, 6, 7], [8, -100, -100]]
    assert present.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [("t5", "T5ForConditionalGeneration"), ("bart", "BartForConditionalGeneration")],
)
def test_decoders_read_what_their_models_would_make_of_the_labels(model_type: str, architecture: str) -> None:
    """Calibration runs base models, too, which have no such method."""
    model = tiny_models.build(model_type, architecture)
    labels = torch.tensor([[5, 6, 7], [8, -100, -100]])
    expected = model.prepare_decoder_input_ids_from_labels(labels=labels)
    assert decoder_inputs(labels, model.config).equal(expected)


def test_groups_hold_every_item_once() -> None:
    assert list(in_groups(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
