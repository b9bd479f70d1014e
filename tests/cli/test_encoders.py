"""Encoders with tokenizers of their own, from a stock folder to a trained result, by the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import transformers
from typer.testing import Result

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.calibration.data import DataSettings, make_batches

Run = Callable[..., Result]

WORDS = ["the", "red", "blue", "green", "number", "is", "here", "there", *map(str, range(1, 10))]
PIECES = [
    *((token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")),
    *((f"▁{word}", -1.0) for word in WORDS),
    *((word, -2.0) for word in WORDS),
    ("▁", -3.0),
    ("<mask>", 0.0),
]
WHOLE = {word: n for n, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "xlm-roberta": lambda: transformers.XLMRobertaTokenizer(vocab=PIECES),
    "camembert": lambda: transformers.CamembertTokenizer(vocab=PIECES),
    "electra": lambda: transformers.BertTokenizer(vocab=WHOLE),
}


@pytest.fixture(params=TOKENIZERS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny model whose tokenizer leaves its class to the model type, as older folders do."""
    tokenizer = TOKENIZERS[request.param]()
    model = tiny_models.build(
        request.param,
        FAMILIES[request.param].architecture,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tiny_models.save(model, tmp_path / "source")
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["tokenizer_class"]
    path.write_text(json.dumps(settings))
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    lines = [
        {"text": f"the {color} number {first} is {place} the {color} number {second}"}
        for color in WORDS[1:4]
        for place in WORDS[6:8]
        for first in WORDS[8:]
        for second in WORDS[8:]
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_an_encoder_is_converted_measured_and_trained(
    source: Path, texts: Path, tmp_path: Path, gqkva: Run
) -> None:
    """With nothing of its family but a record and a tiny configuration."""
    out, trained = tmp_path / "out", tmp_path / "trained"
    calibration = ["--calibration", texts, "--calibration-samples", 16]
    for arguments in (
        ["convert", source, out, "--gq", 2, "--gkv", 3, *calibration],
        ["verify", out, "--against", source],
        ["evaluate", out, "--data", texts, "--against", source, "--samples", 16, "--device", "cpu"],
        ["uptrain", out, trained, "--data", texts, "--samples", "64", "--batch-size", 8, "--teacher", source],
        ["export", out, tmp_path / "stock"],
    ):
        result = gqkva(*arguments)
        assert result.exit_code == 0, (arguments, result.stderr)
    stock = transformers.AutoTokenizer.from_pretrained(source)
    for folder in (out, trained):
        grouped = transformers.AutoTokenizer.from_pretrained(folder)
        assert type(grouped) is type(stock)
        assert grouped("the red number").input_ids == stock("the red number").input_ids


def test_an_encoder_is_calibrated_on_whole_texts(source: Path, texts: Path) -> None:
    """With special tokens around each, as it was trained; not on windows of running text."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    batches = make_batches(DataSettings(str(texts), samples=8), source, model)
    rows = [
        row[mask.bool()]
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert rows
    assert all(int(row[0]) == begin and int(row[-1]) == end for row in rows)
