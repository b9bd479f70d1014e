"""Models that choose a label of an image or a text: accuracy, and agreement with another model."""

from __future__ import annotations

from typing import Any

from gqkva_convert.data.images import checked_pixels
from gqkva_convert.data.labels import label_numbers
from gqkva_convert.data.pairs import COMPARED
from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.records import IMAGE_COLUMNS, LABEL_COLUMNS, find_column, find_columns
from gqkva_convert.data.sequences import encode, sequence_length
from gqkva_convert.data.shapes import renamed_columns
from gqkva_convert.data.tasks import IMAGES
from gqkva_convert.evaluation.agreement import AnswerScores, score_answers
from gqkva_convert.evaluation.samples import draw, records
from gqkva_convert.evaluation.subject import Subject, forward

_BATCH = 32


def score_labels(subject: Subject) -> AnswerScores:
    """Score the labels of images or texts, each a sample.

    Raises:
        DataError: The data have no labels, or ones that the model does not know.
    """
    import torch

    found = records(subject.settings)
    label = find_column(found[0], LABEL_COLUMNS, "labels")
    number = label_numbers(found, label, subject.model.config, str(subject.settings.data))
    batch = _images(subject, found) if subject.task == IMAGES else _texts(subject, found)
    places = draw(range(len(found)), subject.settings)
    progress = subject.measuring(len(places))
    scores = AnswerScores("image" if subject.task == IMAGES else "text")
    with torch.inference_mode():
        for group in subject.batches(places, _BATCH):
            some = [found[place] for place in group]
            inputs = batch(some)
            logits = [forward(model, inputs).logits for model in subject.models]
            targets = torch.tensor([number(record[label]) for record in some])
            values = score_answers(logits, targets, accuracy=True)
            for row in range(len(some)):
                scores.add({"answers": 1.0, **{name: float(each[row]) for name, each in values.items()}})
            progress(len(some))
    return scores


def _images(subject: Subject, found: Any) -> Any:
    column = find_column(found[0], IMAGE_COLUMNS, "images")
    processor = load_processor(subject.folder, "AutoImageProcessor")
    config, data = subject.model.config, str(subject.settings.data)

    def batch(some: list[Any]) -> dict[str, Any]:
        return {"pixel_values": checked_pixels(processor, some, column, config, data)}

    return batch


def _texts(subject: Subject, found: Any) -> Any:
    asked = renamed_columns(subject.settings.column)[1]
    names = asked or find_columns(found[0], COMPARED.choices, "texts")
    tokenizer = load_processor(subject.folder, "AutoTokenizer")
    length = sequence_length(subject.settings.length, subject.model, tokenizer)

    def batch(some: list[Any]) -> dict[str, Any]:
        sentences = [tuple(record[name] for name in names) for record in some]
        return encode(tokenizer, sentences if len(names) == 2 else [text for (text,) in sentences], length)

    return batch
