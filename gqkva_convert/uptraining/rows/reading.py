"""Rows of a run's data, those held out, and the collator that makes batches of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from gqkva_convert.data.images import checked_pixels
from gqkva_convert.data.labels import label_numbers
from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.sequences import sequence_length
from gqkva_convert.data.tasks import CAUSAL, EMBEDDING, IMAGES, arguments
from gqkva_convert.errors import DataError, TrainingError
from gqkva_convert.uptraining.rows.batches import Batch, TextBatches
from gqkva_convert.uptraining.rows.images import ANSWER, ImageBatches, image_records
from gqkva_convert.uptraining.rows.maker import RowMaker
from gqkva_convert.uptraining.rows.row import Row, Rows
from gqkva_convert.uptraining.rows.stored import StoredRows, stored_rows
from gqkva_convert.uptraining.rows.streamed import StreamedRows
from gqkva_convert.uptraining.settings import TrainingSettings


class Collator(Protocol):
    """Makes batches of rows."""

    def batch(self, rows: list[Row], numbers: list[int]) -> Batch:
        """Make inputs and labels; without numbers nothing is drawn at random."""
        ...


def open_rows(settings: TrainingSettings, folder: Path, model: Any, task: str) -> tuple[Rows, Collator]:
    """Open the rows of a run, and return them with what makes batches of them.

    Args:
        settings: Of the run.
        folder: Checkpoint folder, for its tokenizer or image processor.
        model: The model.
        task: Its task.

    Raises:
        DataError: The data cannot be read, or are too few.
        TrainingError: The settings do not suit the task.
    """
    if task == IMAGES:
        return _image_rows(settings, folder, model)
    for name in ("augment", "mixup"):
        if getattr(settings, name):
            raise TrainingError(f"{name} changes images, and this model reads text; leave it out")
    tokenizer = load_processor(folder, "AutoTokenizer")
    rows = _text_rows(settings, tokenizer, model, task)
    batches = TextBatches(task, tokenizer, model, settings.seed)
    if task == EMBEDDING and "score" in rows.held_out[0]:
        batches.highest_score = _highest_score(rows, settings.data)
    return rows, batches


def _text_rows(settings: TrainingSettings, tokenizer: Any, model: Any, task: str) -> Rows:
    length, seed = sequence_length(settings.length, model, tokenizer), settings.seed
    packing = settings.packing and task == CAUSAL and keeps_texts_apart(model)

    def maker(data: str) -> RowMaker:
        return RowMaker(
            task,
            tokenizer,
            length,
            data,
            packing=packing,
            columns=settings.column,
            answers=settings.assistant_only_loss,
        )

    def prepared(data: str, wanted_tokens: int, held_out: int) -> StoredRows:
        return stored_rows(maker(data), wanted_tokens=wanted_tokens, held_out=held_out, seed=seed)

    held_out = 0 if settings.held_out is not None else settings.held_out_rows
    if settings.streaming:
        rows: Rows = StreamedRows(maker(settings.data), held_out=held_out, seed=seed)
    else:
        rows = prepared(settings.data, settings.token_budget or (settings.samples or 1) * length, held_out)
        if settings.samples is not None:
            rows.keep(settings.samples)
    if settings.held_out is not None:
        measured = prepared(settings.held_out, settings.held_out_rows * length, 0)
        rows.readings, others = (*rows.readings, *measured.readings), measured.rows
        rows.held_out = [others[number] for number in range(min(settings.held_out_rows, len(others)))]
    return rows


def _highest_score(rows: Rows, data: str) -> float:
    """Return the number that pairs' scores are divided by: at least 1."""
    if isinstance(rows, StoredRows):
        stored: Any = rows.rows
        found: float = max([1.0, *stored["score"]])
        return found
    highest = max([1.0, *(row["score"] for row in rows.held_out)])
    if highest > 1:
        raise DataError(
            f"{data}: scores up to {highest:g} are brought to 1 by the highest, "
            "which streaming does not know; leave streaming out, or give scores of at most 1"
        )
    return float(highest)


def keeps_texts_apart(model: Any) -> bool:
    """Return whether texts packed into a row do not see each other, by running two short ones."""
    import torch

    if "position_ids" not in arguments(model):
        return False
    first, second = (torch.arange(9) % model.get_input_embeddings().num_embeddings).split([5, 4])
    inputs = {
        "input_ids": torch.cat([first, second])[None].to(model.device),
        "position_ids": torch.cat([torch.arange(5), torch.arange(4)])[None].to(model.device),
    }
    was_training = model.training
    model.eval()
    with torch.no_grad():
        packed = model(**inputs, use_cache=False).logits[0, 5:].float()
        alone = model(input_ids=second[None].to(model.device), use_cache=False).logits[0].float()
    model.train(was_training)
    return bool((packed - alone).norm() < 0.01 * alone.norm())


def _image_rows(settings: TrainingSettings, folder: Path, model: Any) -> tuple[Rows, Collator]:
    for name in ("length", "column", "assistant_only_loss"):
        if getattr(settings, name):
            raise TrainingError(f"images have no {name}; leave it out")
    if settings.streaming:
        raise TrainingError(
            "images are not streamed; leave out streaming, and they are prepared on disk once"
        )
    found, columns = image_records(settings.data)
    number = label_numbers(found, columns[1], model.config, settings.data)
    classes, changes = model.config.num_labels, (settings.augment, settings.mixup, settings.seed)
    collator = ImageBatches(folder, columns, classes, *changes, number=number)
    if len(found) < 2:
        raise DataError(f"{settings.data}: {len(found)} images are too few to train on")
    checked_pixels(collator.processor, [found[0]], columns[0], model.config, settings.data)
    shuffled = found.shuffle(seed=settings.seed)
    held = 0 if settings.held_out is not None else max(1, min(settings.held_out_rows, len(found) // 10))
    rows = StoredRows(shuffled, held, settings.seed, lambda row: 1)
    if settings.samples is not None:
        rows.keep(settings.samples)
    if settings.held_out is not None:
        others, other_columns = image_records(settings.held_out)
        if other_columns != columns:
            raise DataError(
                f"{settings.held_out} has columns {', '.join(other_columns)}, "
                f"{settings.data} {', '.join(columns)}"
            )
        theirs = label_numbers(others, columns[1], model.config, settings.held_out)
        kept = (others[place] for place in range(min(settings.held_out_rows, len(others))))
        rows.held_out = [{**row, ANSWER: theirs(row[columns[1]])} for row in kept]
    return rows, collator
