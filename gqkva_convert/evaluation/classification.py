"""Models that choose a label of an image or a text: accuracy, and agreement with another model."""

from __future__ import annotations

from typing import Any

from gqkva_convert.data.labels import label_numbers
from gqkva_convert.data.processors import (
    arguments,
    check_size,
    load_processor,
    pixel_values,
    sequence_length,
)
from gqkva_convert.data.records import (
    LABEL_COLUMNS,
    PAIR_COLUMNS,
    PICTURE_COLUMNS,
    TEXT_COLUMNS,
    find_columns,
    picture_of,
)
from gqkva_convert.data.tasks import IMAGES
from gqkva_convert.evaluation.agreement import AnswerScores, score_answers
from gqkva_convert.evaluation.samples import draw, encode, records
from gqkva_convert.evaluation.subject import Subject

_BATCH = 32


def score_labels(subject: Subject) -> AnswerScores:
    """Score the labels of images or texts, each a sample.

    Raises:
        DataError: The data have no labels, or ones that the model does not know.
    """
    import torch

    found = records(subject.settings)
    label = find_columns(found[0], [(name,) for name in LABEL_COLUMNS], "labels")[0]
    number = label_numbers(found, label, subject.model.config, str(subject.settings.data))
    batch = _images(subject, found) if subject.task == IMAGES else _texts(subject, found)
    places = draw(range(len(found)), subject.settings)
    size = subject.settings.batch_size or _BATCH
    progress = subject.begin(f"measuring {subject.settings.data}", len(places))
    scores = AnswerScores("image" if subject.task == IMAGES else "text")
    with torch.inference_mode():
        for start in range(0, len(places), size):
            some = [found[place] for place in places[start : start + size]]
            inputs = batch(some)
            own, *other = (_logits(model, inputs) for model in subject.models)
            targets = torch.tensor([number(record[label]) for record in some])
            values = score_answers(own, other[0] if other else None, targets, accuracy=True)
            for row in range(len(some)):
                scores.add({"answers": 1.0, **{name: float(each[row]) for name, each in values.items()}})
            progress(len(some))
    return scores


def _logits(model: Any, inputs: dict[str, Any]) -> Any:
    taken = arguments(model)
    moved = {name: value.to(model.device) for name, value in inputs.items() if name in taken}
    if "pixel_values" in moved:
        moved["pixel_values"] = moved["pixel_values"].to(model.dtype)
    return model(**moved).logits


def _images(subject: Subject, found: Any) -> Any:
    column = find_columns(found[0], [(name,) for name in PICTURE_COLUMNS], "images")[0]
    processor = load_processor(subject.folder, "AutoImageProcessor")

    def batch(some: list[Any]) -> dict[str, Any]:
        pixels = pixel_values(processor, (picture_of(record, column) for record in some))
        check_size(pixels, subject.model.config, str(subject.settings.data))
        return {"pixel_values": pixels}

    return batch


def _texts(subject: Subject, found: Any) -> Any:
    names = find_columns(found[0], [*PAIR_COLUMNS, *((name,) for name in TEXT_COLUMNS)], "texts")
    tokenizer = load_processor(subject.folder, "AutoTokenizer")
    length = sequence_length(subject.settings.length, subject.model, tokenizer)

    def batch(some: list[Any]) -> dict[str, Any]:
        if len(names) == 1:
            return encode(tokenizer, [record[names[0]] for record in some], length)
        return encode(tokenizer, [(record[names[0]], record[names[1]]) for record in some], length)

    return batch
