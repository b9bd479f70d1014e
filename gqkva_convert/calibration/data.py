"""Data for calibration: text, sentence pairs, source and target texts, images; local files or the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert.data.processors import (
    arguments,
    check_size,
    is_causal,
    load_processor,
    pixel_values,
    sequence_length,
)
from gqkva_convert.data.records import (
    PICTURE_COLUMNS,
    TARGET_COLUMNS,
    TEXT_COLUMNS,
    Record,
    find_columns,
    is_running_text,
    picture_of,
    read_records,
    text_columns,
)
from gqkva_convert.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, "Tensor"]

# Windows of text that are read for one that is used.
_SPREAD = 4


@dataclass(frozen=True)
class DataSettings:
    """What to calibrate on.

    Attributes:
        data: A file (txt, jsonl, csv, parquet), a folder of images or such files, a Hub id, or a short name
            of `KNOWN`.
        samples: Sequences or images.
        length: Tokens a sequence; None for 2,048 or as many as the model reads.
        seed: Seed of what is drawn.
        batch_tokens: Most positions in one forward pass.
    """

    data: str
    samples: int = 128
    length: int | None = None
    seed: int = 0
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        whole = {"samples": self.samples, "seed": self.seed, "batch_tokens": self.batch_tokens}
        wrong = [f"{name} {n!r}" for name, n in whole.items() if type(n) is not int or n < 0]
        if not isinstance(self.data, str) or not self.data.strip():
            raise DataError(f"calibration data are a file, a folder or a name, found {self.data!r}")
        if wrong or (self.length is not None and type(self.length) is not int) or self.batch_tokens == 0:
            said = ", ".join(wrong) or f"length {self.length!r}, batch_tokens {self.batch_tokens!r}"
            raise DataError(f"calibration {said}: give whole numbers from 0 on")
        if self.samples < 2:
            raise DataError(f"{self.samples} calibration samples: give at least 2, one is held out")
        if self.length is not None and self.length < 2:
            raise DataError(f"calibration sequences of {self.length} tokens: give at least 2")


def make_batches(settings: DataSettings, folder: Path, model: Any) -> list[Batch]:
    """Inputs for a model's forward pass.

    Args:
        settings: What to read.
        folder: Checkpoint folder, for its tokenizer or image processor; no code of it is run.
        model: The transformers model, for the inputs it takes.

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
    if has_images and has_text:
        return _captioned_images(settings, folder, model)
    if has_images:
        return _images(settings, folder, model)
    tokenizer = load_processor(folder, "AutoTokenizer")
    length = sequence_length(settings.length, model, tokenizer)
    if model.config.is_encoder_decoder:
        batches = _source_and_target(settings, tokenizer, length, model)
    elif is_causal(model):
        batches = _windows(settings, tokenizer, length)
    else:
        batches = _sentences(settings, tokenizer, length)
    _check_known(batches, tokenizer, settings.data)
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


def _texts(settings: DataSettings) -> Iterator[str]:
    """Every text of every record; both sides of a pair, a dialogue and its summary."""
    names: tuple[str, ...] = ()
    for record in read_records(settings.data, settings.seed):
        names = names or text_columns(record)
        for name in names:
            if isinstance(record[name], str) and record[name].strip():
                yield record[name]


def _windows(settings: DataSettings, tokenizer: Any, length: int) -> list[Batch]:
    """Windows of running text, each full; documents follow one another behind an end-of-text token."""
    import random

    import torch

    joint = is_running_text(settings.data)
    between = [] if joint or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    wanted = settings.samples * length * _SPREAD
    stream: list[int] = []
    texts = _texts(settings)
    while len(stream) < wanted and (some := list(islice(texts, 256))):
        if joint:
            stream += tokenizer("".join(text.rstrip("\n") + "\n" for text in some), add_special_tokens=False)[
                "input_ids"
            ]
            continue
        for ids in tokenizer(some, add_special_tokens=False)["input_ids"]:
            stream += [*between, *ids]
    count = len(stream) // length
    if count < 2:
        raise DataError(
            f"{settings.data}: {len(stream)} tokens are too few for sequences of {length}; give more text or "
            "a smaller --calibration-length"
        )
    starts = random.Random(settings.seed).sample(range(count), min(settings.samples, count))
    rows = [torch.tensor(stream[start * length : (start + 1) * length]) for start in starts]
    per_batch = max(1, settings.batch_tokens // length)
    return [{"input_ids": torch.stack(rows[at : at + per_batch])} for at in range(0, len(rows), per_batch)]


def _sentences(settings: DataSettings, tokenizer: Any, length: int) -> list[Batch]:
    """Texts one by one, cut at the longest sequence, with the special tokens around them."""
    texts = list(
        islice(_texts(settings), settings.samples * (_SPREAD if is_running_text(settings.data) else 1))
    )
    if len(texts) < 2:
        raise DataError(f"{settings.data}: {len(texts)} texts are too few to calibrate on")
    if len(texts) > settings.samples:
        import random

        texts = random.Random(settings.seed).sample(texts, settings.samples)
    batches, start = [], 0
    while start < len(texts):
        count = 1
        encoded = _encode(tokenizer, texts[start : start + 1], length)
        while start + count < len(texts):
            wider = _encode(tokenizer, texts[start : start + 2 * count], length)
            if wider["input_ids"].numel() > settings.batch_tokens:
                break
            count, encoded = min(2 * count, len(texts) - start), wider
        batches.append(encoded)
        start += count
    return batches


def _encode(tokenizer: Any, texts: list[str], length: int) -> Batch:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(
        texts, truncation=True, max_length=length, padding=len(texts) > 1, return_tensors="pt"
    )
    return {
        name: encoded[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded
    }


def _source_and_target(settings: DataSettings, tokenizer: Any, length: int, model: Any) -> list[Batch]:
    """A text for the encoder and one for the decoder; of a single text the first and the second half."""
    pairs: list[tuple[str, str]] = []
    names: tuple[str, ...] = ()
    for record in islice(read_records(settings.data, settings.seed), settings.samples):
        if not names:
            names = find_columns(record, [*TARGET_COLUMNS, *((name,) for name in TEXT_COLUMNS)], "texts")
        if len(names) == 2:
            if all(isinstance(record[name], str) and record[name].strip() for name in names):
                pairs.append((record[names[0]], record[names[1]]))
            continue
        if not isinstance(record[names[0]], str):
            continue
        words = record[names[0]].split(" ")
        if len(words) > 3:
            pairs.append((" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])))
    if len(pairs) < 2:
        raise DataError(f"{settings.data}: {len(pairs)} texts are too few to calibrate on")
    start = model.config.decoder_start_token_id
    if start is None:
        start = model.config.pad_token_id
    batches = []
    per_batch = max(1, settings.batch_tokens // (2 * length))
    for at in range(0, len(pairs), per_batch):
        some = pairs[at : at + per_batch]
        batch = _encode(tokenizer, [source for source, _ in some], length)
        target = _encode(tokenizer, [target for _, target in some], length)
        ids = target["input_ids"].roll(1, dims=1)
        ids[:, 0] = start
        batch.pop("token_type_ids", None)
        batches.append(batch | {"decoder_input_ids": ids, "decoder_attention_mask": target["attention_mask"]})
    return batches


def _pictures(settings: DataSettings) -> Iterator[tuple[Any, Record]]:
    name = ""
    for record in read_records(settings.data, settings.seed):
        if not name:
            name = find_columns(record, [(column,) for column in PICTURE_COLUMNS], "images")[0]
        yield picture_of(record, name), record


def _images(settings: DataSettings, folder: Path, model: Any) -> list[Batch]:
    processor = load_processor(folder, "AutoImageProcessor")
    pictures = [picture for picture, _ in islice(_pictures(settings), settings.samples)]
    if len(pictures) < 2:
        raise DataError(f"{settings.data}: {len(pictures)} images are too few to calibrate on")
    batches = []
    for at in range(0, len(pictures), 16):
        pixels = pixel_values(processor, pictures[at : at + 16])
        check_size(pixels, model.config, settings.data)
        batches.append({"pixel_values": pixels})
    return batches


def _captioned_images(settings: DataSettings, folder: Path, model: Any) -> list[Batch]:
    processor, tokenizer = (
        load_processor(folder, "AutoImageProcessor"),
        load_processor(folder, "AutoTokenizer"),
    )
    length = sequence_length(settings.length, model, tokenizer)
    pictures, captions = [], []
    for picture, record in islice(_pictures(settings), settings.samples):
        name = find_columns(record, (("caption",), ("text",)), "captions")[0]
        caption = record[name][0] if isinstance(record[name], list) else record[name]
        pictures.append(picture)
        captions.append(caption)
    if len(pictures) < 2:
        raise DataError(f"{settings.data}: {len(pictures)} images are too few to calibrate on")
    batches = []
    for at in range(0, len(pictures), 16):
        batch = _encode(tokenizer, captions[at : at + 16], length)
        batch.pop("token_type_ids", None)
        batch["pixel_values"] = pixel_values(processor, pictures[at : at + 16])
        check_size(batch["pixel_values"], model.config, settings.data)
        batches.append(batch)
    return batches
