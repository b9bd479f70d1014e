"""Pairs of texts: a source and its target, two that are compared, single ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chats
import pytest
import tiny_models
from typer.testing import Result

from gqkva_convert.data.pairs import COMPARED, TARGETS, TARGETS_OR_TEXTS, Columns, PairReader
from gqkva_convert.data.tokenizers import train_tokenizer
from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.errors import DataError

Run = Callable[..., Result]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def pairs(row: dict[str, Any], wanted: Columns, *columns: str) -> list[tuple[str, ...]]:
    return [texts for texts, _ in PairReader("data", wanted, columns).read([row])]


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"document": "a", "summary": "b"}, ("a", "b")),
        ({"instruction": "a", "input": "c", "output": "b"}, ("a\nc", "b")),
        ({"instruction": "a", "input": "", "output": "b"}, ("a", "b")),
        ({"question": "a", "context": "c", "answer": "b"}, ("a\nc", "b")),
        ({"prompt": "a", "completion": "b"}, ("a", "b")),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("a", "b")),
        ({"input": "a", "output": "b"}, ("a", "b")),
    ],
)
def test_sources_and_targets(row: dict[str, str], pair: tuple[str, str]) -> None:
    """An instruction is part of what its answer follows from; it was dropped."""
    assert pairs(row, TARGETS) == [pair]


def test_columns_are_read_by_name() -> None:
    row = {"q": "a", "p": "b", "score": 0.5, "text": "c"}
    assert pairs(row, COMPARED, "q", "p") == [("a", "b")]
    assert pairs(row, COMPARED, "q") == [("a",)]
    assert pairs(row, COMPARED) == [("c",)]
    assert pairs(row, TARGETS_OR_TEXTS) == [("c",)]
    with pytest.raises(DataError, match="name two columns of texts"):
        pairs(row, TARGETS, "q")
    with pytest.raises(DataError, match="name two columns of texts"):
        pairs(row, COMPARED, "q", "p", "text")
    with pytest.raises(DataError, match="holds a list, such as a chat"):
        pairs({"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, TARGETS)
    assert pairs({"prompt": "a", "completion": None}, TARGETS) == []


def test_a_sequence_to_sequence_model_is_calibrated_on_instructions(tmp_path: Path, gqkva: Run) -> None:
    model = tiny_models.save(
        tiny_models.build("t5", "T5ForConditionalGeneration", vocab_size=4096), tmp_path / "t5"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((MODEL / name).read_bytes())
    rows = [{"instruction": f"name a fox {at}", "input": "red", "output": "brown"} for at in range(8)]
    file = chats.write_rows(tmp_path / "alpaca.jsonl", rows)
    sizes = ("--calibration-samples", "4", "--calibration-length", "16", "--refine", "none", "--gkv", "1")
    result = gqkva("convert", model, tmp_path / "out", "--calibration", file, *sizes)
    assert result.exit_code == 0, result.output
    reading = json.loads((tmp_path / "out" / "gqkva_report.json").read_text())["calibration"]["reading"]
    assert reading["columns"] == ["instruction", "output", "input"]
    assert "\\nred" in reading["sample"]


def test_a_tokenizer_is_trained_on_all_that_is_read(tmp_path: Path) -> None:
    """Instructions and messages, too."""
    rows = [{"instruction": "zebra zebra", "output": "quagga quagga"}] * 20
    chat = [{"messages": [{"role": "user", "content": "okapi okapi"}]}] * 20
    for words, made in ((("zebra", "quagga"), rows), (("okapi",), chat)):
        file = chats.write_rows(tmp_path / f"{words[0]}.jsonl", made)
        tokenizer = train_tokenizer(str(file), 300, kind="causal")
        assert all(len(tokenizer.tokenize(word)) < 3 for word in words)
