"""Samples of a data set to measure on: records, texts, windows of text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from gqkva_convert.data.documents import Document, DocumentReader, Reading
from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.records import TEST, is_running_text, load_records
from gqkva_convert.data.sequences import TEXTS, in_groups, join_lines, sequence_length, tokenise_documents
from gqkva_convert.errors import DataError
from gqkva_convert.evaluation.settings import EvaluationSettings
from gqkva_convert.evaluation.windows import Window, rolling_windows

Item = TypeVar("Item")


def records(settings: EvaluationSettings) -> Any:
    """Prepare the data on disk.

    Raises:
        DataError: They cannot be read, or are none.
    """
    assert settings.data is not None
    found = load_records(
        settings.data, streaming=False, part=TEST, split=settings.split, columns=settings.column
    )
    if len(found) == 0:
        raise DataError(f"{settings.data} holds no records")
    return found


def draw(items: Sequence[Item], settings: EvaluationSettings) -> list[Item]:
    """Draw the samples to measure by the seed, in their order: data sets are often sorted by kind."""
    wanted = len(items) if settings.samples is None else min(settings.samples, len(items))
    chosen = random.Random(settings.seed).sample(range(len(items)), wanted)
    return [items[place] for place in sorted(chosen)]


def is_joined(settings: EvaluationSettings) -> bool:
    """Return whether all records are one text."""
    assert settings.data is not None
    return settings.documents == "joined" or (settings.documents is None and is_running_text(settings.data))


def texts(settings: EvaluationSettings, tokenizer: Any) -> tuple[list[Document], Reading | None]:
    """Return every text of the data, and what was read; running text is one, its lines joined.

    Args:
        settings: Of the measurement.
        tokenizer: The model's own, for its chat template.
    """
    joined = is_joined(settings)
    assert settings.data is not None
    reader = DocumentReader(settings.data, tokenizer, settings.column, answers=settings.assistant_only_loss)
    found = list(reader.read(records(settings), keep_blank=joined))
    if joined and any(document.is_rendered or document.answers for document in found):
        raise DataError(
            f"{settings.data} holds chats or answers, which are not joined; leave out --documents"
        )
    lines = (document.text for document in found)
    return ([Document(join_lines(lines))] if joined else found), reader.reading


def windows(settings: EvaluationSettings, folder: Path, model: Any) -> tuple[list[Window], dict[str, Any]]:
    """Cut all texts into windows, and describe how; ``reading`` is what was read.

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
    documents, reading = texts(settings, tokenizer)
    tokens = (each for some in in_groups(documents, TEXTS) for each in tokenise_documents(tokenizer, some))
    for number, (document, (ids, answering)) in enumerate(zip(documents, tokens, strict=True)):
        # A chat template writes its special tokens itself.
        before = None if document.is_rendered else prefix
        made = rolling_windows(ids, before, length, stride, number, counted=answering)
        found += [window for window in made if window.answers]
    if not found:
        raise DataError(f"{settings.data} holds no text that could be measured")
    chosen = draw(found, settings)
    return chosen, {
        "documents": len(documents),
        "windows": len(chosen),
        "windows_in_all": len(found),
        "length": length,
        "stride": stride,
        "prefix_token": None if documents[0].is_rendered else prefix,
        "joined": is_joined(settings),
        **({"assistant_only_loss": True} if settings.assistant_only_loss else {}),
        "reading": reading,
    }
