"""Data for calibration: text, sentence pairs, source and target texts, images; local files or the Hub."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert.data.documents import DocumentReader, Reading
from gqkva_convert.data.images import checked_pixels
from gqkva_convert.data.pairs import TARGETS_OR_TEXTS, PairReader
from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.records import (
    IMAGE_COLUMNS,
    find_column,
    is_running_text,
    read_records,
)
from gqkva_convert.data.sequences import (
    TEXTS,
    decoder_inputs,
    encode,
    in_groups,
    sequence_length,
    tokenise_documents,
)
from gqkva_convert.data.shapes import Record, renamed_columns
from gqkva_convert.data.tasks import arguments, is_causal
from gqkva_convert.errors import DataError, placed

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, "Tensor"]

# Windows of text that are read for one that is used.
_SPREAD = 4
# Images in one forward pass.
_IMAGES = 16


@dataclass(frozen=True)
class DataSettings:
    """Data to calibrate on.

    Attributes:
        data: A file (txt, jsonl, csv, parquet), a folder of images or such files, a Hub id, or a short name
            of `KNOWN`.
        samples: Sequences or images.
        length: Tokens a sequence; None for 2,048 or as many as the model reads.
        seed: Seed of what is drawn.
        batch_tokens: Most positions in one forward pass.
        column: Columns to read, or ``KNOWN=NAME`` where a known column has another name.
    """

    data: str
    samples: int = 128
    length: int | None = None
    seed: int = 0
    batch_tokens: int = 4096
    column: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.column, (list, tuple)) or not all(
            isinstance(name, str) for name in self.column
        ):
            raise placed(DataError(f"calibration columns are names, found {self.column!r}"), "column")
        object.__setattr__(self, "column", tuple(self.column))
        renamed_columns(self.column)
        if not isinstance(self.data, str) or not self.data.strip():
            said = f"calibration data are a file, a folder or a name, found {self.data!r}"
            raise placed(DataError(said), "data")
        for name, least in (("samples", 0), ("seed", 0), ("batch_tokens", 1)):
            number = getattr(self, name)
            if type(number) is not int or number < least:
                said = f"calibration {name} {number!r}: give a whole number from {least} on"
                raise placed(DataError(said), name)
        if self.samples < 2:
            said = f"{self.samples} calibration samples: give at least 2, one is held out"
            raise placed(DataError(said), "samples")
        if self.length is not None and (type(self.length) is not int or self.length < 2):
            said = f"calibration sequences of {self.length!r} tokens: give at least 2"
            raise placed(DataError(said), "length")


def make_batches(
    settings: DataSettings, folder: Path, model: Any, say: Callable[[Reading], None] = lambda reading: None
) -> list[Batch]:
    """Make inputs for a model's forward pass.

    Args:
        settings: What to read.
        folder: Checkpoint folder, for its tokenizer or image processor; no code of it is run.
        model: The transformers model, for the inputs it takes.
        say: Called with what was read of texts.

    Returns:
        Batches of tensors by argument name, in an order that the seed fixes.

    Raises:
        DataError: There is too little, or not of the kind that the model reads.
    """
    kind = type(model).__name__
    if model.main_input_name == "input_features":
        raise DataError(f"{kind} reads sound, which calibration does not; convert it from weights alone")
    has_images = "pixel_values" in arguments(model)
    has_text = "input_ids" in arguments(model)
    if not has_text:
        return _images(settings, folder, model, lambda records: {})
    tokenizer = load_processor(folder, "AutoTokenizer")
    length = sequence_length(settings.length, model, tokenizer)
    if has_images:
        return _images(settings, folder, model, lambda records: _captions(tokenizer, records, length))
    reader: DocumentReader | PairReader
    if model.config.is_encoder_decoder:
        reader = PairReader(settings.data, TARGETS_OR_TEXTS, settings.column)
        batches = _source_and_target(settings, reader, tokenizer, length, model)
    else:
        reader = DocumentReader(settings.data, tokenizer, settings.column)
        made = _windows if is_causal(model) else _sentences
        batches = made(settings, reader, tokenizer, length)
    _check_known(batches, tokenizer, settings.data)
    if reader.reading is not None:
        say(reader.reading)
    return batches


def _check_known(batches: list[Batch], tokenizer: Any, data: str) -> None:
    """Refuse texts that the tokenizer does not know: they look alike to the model."""
    unknown = tokenizer.unk_token_id
    others = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
    if unknown is None or unknown in others:
        return
    seen, missed = 0, 0
    for batch in batches:
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        seen += ids.numel() if mask is None else int(mask.sum())
        missed += int((ids == unknown).sum())
    if 2 * missed > seen:
        raise DataError(
            f"{data}: {missed} of {seen} tokens are unknown to the model's tokenizer; give text of a "
            "language and script that it was trained on"
        )


def _records(settings: DataSettings) -> Iterator[Record]:
    return read_records(settings.data, settings.seed, settings.column)


def _windows(settings: DataSettings, reader: DocumentReader, tokenizer: Any, length: int) -> list[Batch]:
    """Cut running text into full windows; documents follow one another behind an end-of-text token."""
    import torch

    joined = is_running_text(settings.data)
    between = [] if joined or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    for some in in_groups(reader.read(_records(settings)), TEXTS):
        found = tokenise_documents(tokenizer, some, joined=joined)
        # A chat template writes its special tokens itself.
        for document, (ids, _) in zip(some, found, strict=False):
            stream += [*([] if document.is_rendered else between), *ids]
        if len(stream) >= settings.samples * length * _SPREAD:
            break
    count = len(stream) // length
    if count < 2:
        raise DataError(
            f"{settings.data}: {len(stream)} tokens are too few for sequences of {length}; give more text or "
            "a smaller --calibration-length"
        )
    starts = random.Random(settings.seed).sample(range(count), min(settings.samples, count))
    rows = [torch.tensor(stream[start * length : (start + 1) * length]) for start in starts]
    per_batch = max(1, settings.batch_tokens // length)
    return [{"input_ids": torch.stack(some)} for some in in_groups(rows, per_batch)]


def _sentences(settings: DataSettings, reader: DocumentReader, tokenizer: Any, length: int) -> list[Batch]:
    """Encode texts one by one, cut at the longest sequence, with the special tokens around them."""
    read = settings.samples * (_SPREAD if is_running_text(settings.data) else 1)
    texts = [document.text for document in islice(reader.read(_records(settings)), read)]
    _require_two(texts, "texts", settings)
    if len(texts) > settings.samples:
        texts = random.Random(settings.seed).sample(texts, settings.samples)
    batches, start = [], 0
    while start < len(texts):
        count = 1
        encoded = encode(tokenizer, texts[start : start + 1], length)
        while start + count < len(texts):
            wider = encode(tokenizer, texts[start : start + 2 * count], length)
            if wider["input_ids"].numel() > settings.batch_tokens:
                break
            count, encoded = min(2 * count, len(texts) - start), wider
        batches.append(encoded)
        start += count
    return batches


def _require_two(samples: Sequence[Any], kind: str, settings: DataSettings) -> None:
    if len(samples) < 2:
        raise DataError(f"{settings.data}: {len(samples)} {kind} are too few to calibrate on")


def _source_and_target(
    settings: DataSettings, reader: PairReader, tokenizer: Any, length: int, model: Any
) -> list[Batch]:
    """Encode pairs of a text for the encoder and one for the decoder."""
    found = reader.read(islice(_records(settings), settings.samples))
    pairs = [pair for texts, _ in found for pair in _halves(texts)]
    _require_two(pairs, "texts", settings)
    batches = []
    for some in in_groups(pairs, max(1, settings.batch_tokens // (2 * length))):
        batch = _without_types(encode(tokenizer, [source for source, _ in some], length))
        target = encode(tokenizer, [target for _, target in some], length)
        batch["decoder_input_ids"] = decoder_inputs(target["input_ids"], model.config)
        batches.append(batch | {"decoder_attention_mask": target["attention_mask"]})
    return batches


def _halves(texts: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return a source and its target; of a single text the first and the second half, unless it is short."""
    if len(texts) == 2:
        return [(texts[0], texts[1])]
    words = texts[0].split(" ")
    half = len(words) // 2
    return [(" ".join(words[:half]), " ".join(words[half:]))] if len(words) > 3 else []


def _without_types(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "token_type_ids"}


def _images(
    settings: DataSettings, folder: Path, model: Any, inputs: Callable[[list[Record]], Batch]
) -> list[Batch]:
    """Read pixels of images, and what else a model reads of their records."""
    processor = load_processor(folder, "AutoImageProcessor")
    records = list(islice(_records(settings), settings.samples))
    column = find_column(records[0], IMAGE_COLUMNS, "images") if records else ""
    _require_two(records, "images", settings)
    return [
        inputs(some) | {"pixel_values": checked_pixels(processor, some, column, model.config, settings.data)}
        for some in in_groups(records, _IMAGES)
    ]


def _captions(tokenizer: Any, records: list[Record], length: int) -> Batch:
    found = [record[find_column(record, ("caption", "text"), "captions")] for record in records]
    captions = [caption[0] if isinstance(caption, list) else caption for caption in found]
    return _without_types(encode(tokenizer, captions, length))
