"""What is read of a data set to measure on: texts, pairs of texts, labelled images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from gqkva_convert.data.processors import load_processor, sequence_length
from gqkva_convert.data.records import (
    TEST,
    Record,
    is_running_text,
    load_records,
    text_columns,
)
from gqkva_convert.errors import DataError
from gqkva_convert.evaluation.settings import EvaluationSettings
from gqkva_convert.evaluation.windows import Window, rolling_windows

Item = TypeVar("Item")
# Texts tokenised at once.
_TEXTS = 256


def records(settings: EvaluationSettings) -> Any:
    """The data, prepared on disk.

    Raises:
        DataError: They cannot be read, or are none.
    """
    assert settings.data is not None
    found = load_records(settings.data, streaming=False, part=TEST, split=settings.split)
    if len(found) == 0:
        raise DataError(f"{settings.data} holds no records")
    return found


def draw(items: Sequence[Item], settings: EvaluationSettings) -> list[Item]:
    """As many as are measured, drawn by the seed, in their order: data sets are often sorted by kind."""
    wanted = len(items) if settings.samples is None else min(settings.samples, len(items))
    chosen = random.Random(settings.seed).sample(range(len(items)), wanted)
    return [items[place] for place in sorted(chosen)]


def is_joined(settings: EvaluationSettings) -> bool:
    """Whether all records are one text."""
    assert settings.data is not None
    return settings.documents == "joined" or (settings.documents is None and is_running_text(settings.data))


def texts(settings: EvaluationSettings) -> list[str]:
    """Every text of the data; of running text one, its lines joined."""
    found = records(settings)
    names = text_columns(found[0])
    lines = [record[name] for record in found for name in names if isinstance(record[name], str)]
    if is_joined(settings):
        return ["".join(line.rstrip("\n") + "\n" for line in lines)]
    return [line for line in lines if line.strip()]


def windows(settings: EvaluationSettings, folder: Path, model: Any) -> tuple[list[Window], dict[str, Any]]:
    """Windows of all texts, and how they were cut.

    Raises:
        DataError: There is too little text, or a setting that does not suit the model.
    """
    tokenizer = load_processor(folder, "AutoTokenizer")
    length = sequence_length(settings.length, model, tokenizer)
    stride = length if settings.stride is None else settings.stride
    if stride > length:
        raise DataError(f"--stride {stride} leaves tokens out between windows of {length}; give at most that")
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    found: list[Window] = []
    documents, all_texts = 0, iter(texts(settings))
    while some := list(islice(all_texts, _TEXTS)):
        for tokens in tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
            found += rolling_windows(tokens, prefix, length, stride, documents)
            documents += 1
    if not found:
        raise DataError(f"{settings.data} holds no text that could be measured")
    chosen = draw(found, settings)
    return chosen, {
        "documents": documents,
        "windows": len(chosen),
        "windows_in_all": len(found),
        "length": length,
        "stride": stride,
        "prefix_token": prefix,
        "joined": is_joined(settings),
    }


def encode(tokenizer: Any, sentences: Sequence[Any], length: int) -> dict[str, Any]:
    """Texts, or pairs of them, as a batch, padded on the right."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(
        list(sentences),
        truncation=True,
        max_length=length,
        padding=len(sentences) > 1,
        padding_side="right",
        return_tensors="pt",
    )
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: encoded[name] for name in names if name in encoded}


def is_text(record: Record, *names: str) -> bool:
    """Whether a record has texts under all of some names."""
    return all(isinstance(record[name], str) and record[name].strip() for name in names)
