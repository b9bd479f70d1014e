"""Data for calibration: text, sentence pairs, source and target texts, images; local files or the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Record = dict[str, Any]
Batch = dict[str, "Tensor"]

# Short names of data sets that people calibrate on: Hub id, configuration, split.
KNOWN = {
    "wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
    "c4": ("allenai/c4", "en", "train"),
    "stsb": ("sentence-transformers/stsb", None, "train"),
    "cifar10": ("uoft-cs/cifar10", None, "train"),
}
_BUILDERS = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".gz": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_TEXT = ("text", "content", "sentence")
_PAIRS = (("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("premise", "hypothesis"))
_TO_TARGET = (
    ("dialogue", "summary"),
    ("document", "summary"),
    ("article", "highlights"),
    ("source", "target"),
    ("input", "output"),
)
_PICTURE = ("image", "img", "pixel_values")
# Records that a shuffle holds at once, and how many windows of text are read for one that is used.
_SHUFFLE_BUFFER = 10_000
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
        wrong = [name for name, number in whole.items() if type(number) is not int or number < 0]
        if not isinstance(self.data, str) or not self.data.strip():
            raise DataError(f"calibration data are a file, a folder or a name, found {self.data!r}")
        if wrong or (self.length is not None and type(self.length) is not int) or self.batch_tokens == 0:
            raise DataError(
                f"calibration {', '.join(wrong) or 'length or batch_tokens'}: whole numbers are needed"
            )
        if self.samples < 2:
            raise DataError(f"{self.samples} calibration samples: give at least 2, one is held out")
        if self.length is not None and self.length < 2:
            raise DataError(f"calibration sequences of {self.length} tokens: give at least 2")


def read_records(settings: DataSettings) -> Iterator[Record]:
    """Records of a data set, shuffled by the seed unless it is running text.

    Raises:
        DataError: It cannot be found or read.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"calibration needs the package datasets, which does not load: {error}") from error
    datasets.disable_progress_bars()
    try:
        found: Any = datasets.load_dataset(**_where(settings.data), streaming=True)
        if not isinstance(found, datasets.IterableDataset):
            found = found[next(name for name in ("train", "validation", *found) if name in found)]
        if not _is_running_text(settings.data):
            found = found.shuffle(seed=settings.seed, buffer_size=_SHUFFLE_BUFFER)
        yield from found
    except DataError:
        raise
    except Exception as error:  # whatever a reader of some format raises
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise DataError(
            f"cannot read {settings.data!r} as a data set ({reason}); give a txt, jsonl, csv or parquet "
            "file, a folder of images, or the id of a data set on the Hub"
        ) from error


def _is_running_text(data: str) -> bool:
    """Whether records are lines of one text, whose order matters."""
    return data == "wikitext" or Path(data).suffix == ".txt"


def _where(data: str) -> dict[str, Any]:
    path = Path(data)
    if data in KNOWN and not path.exists():
        name, configuration, split = KNOWN[data]
        return {"path": name, "name": configuration, "split": split}
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise DataError(f"{path}: a file to calibrate on ends in {', '.join(_BUILDERS)}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
        return {"path": _BUILDERS[path.suffix], "data_files": str(path), "split": "train"}
    if path.is_dir():
        if any(file.suffix.lower() in _IMAGES for file in path.rglob("*")):
            return {"path": "imagefolder", "data_dir": str(path)}
        return {"path": str(path)}
    if data in set(_BUILDERS.values()) or data == "imagefolder":
        raise DataError(f"{data!r} is a format, not data; give a file, a folder or the id of a data set")
    if path.suffix in _BUILDERS or data.startswith((".", "/", "~")):
        raise DataError(f"{data} does not exist")
    return {"path": data}


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
    has_images = "pixel_values" in _arguments(model)
    has_text = "input_ids" in _arguments(model)
    if has_images and has_text:
        return _captioned_images(settings, folder, model)
    if has_images:
        return _images(settings, folder)
    tokenizer = _load(folder, "AutoTokenizer")
    length = _length(settings, model, tokenizer)
    if model.config.is_encoder_decoder:
        return _source_and_target(settings, tokenizer, length, model)
    if _is_causal(model):
        return _windows(settings, tokenizer, length)
    return _sentences(settings, tokenizer, length)


def _arguments(model: Any) -> set[str]:
    import inspect

    return set(inspect.signature(model.forward).parameters)


def _is_causal(model: Any) -> bool:
    """Whether positions see only what stands before them, so that texts may be cut anywhere."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from gqkva_convert.modeling.families import MODEL_TYPE_PREFIX

    stock = model.config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    is_encoder = stock in ("bert", "roberta") and not getattr(model.config, "is_decoder", False)
    return stock in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder


def _load(folder: Path, auto: str) -> Any:
    import transformers

    try:
        return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:
        # Some versions of transformers want torchvision for the Auto class alone.
        pil = _pil_processor(folder) if auto == "AutoImageProcessor" else None
        if pil is not None:
            return pil
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{folder}: its {auto.removeprefix('Auto')} does not load: {reason}") from error
    except Exception as error:  # transformers raises many kinds
        raise DataError(
            f"{folder} has no {auto.removeprefix('Auto').lower()} that loads "
            f"({type(error).__name__}); calibration needs the one the model was trained with"
        ) from error


def _pil_processor(folder: Path) -> Any:
    """The image processor that a folder names, in the form that needs Pillow alone, if there is one."""
    import json

    import transformers

    try:
        name = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
        kind = getattr(transformers, f"{str(name).removesuffix('Fast')}Pil")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return kind.from_pretrained(folder)


def _length(settings: DataSettings, model: Any, tokenizer: Any) -> int:
    """Tokens a sequence: what is asked for, or 2,048, or what the model reads."""
    config = getattr(model.config, "text_config", model.config)
    limits = [
        limit
        for limit in (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
        if isinstance(limit, int) and limit > 0
    ]
    most = min([2048 if settings.length is None else settings.length, *limits])
    if settings.length is not None and most < settings.length:
        raise DataError(f"sequences of {settings.length} tokens: the model reads {most}")
    return most if config.model_type not in ("roberta", "gqkva_roberta") else min(most, limits[0] - 2)


def _columns(record: Record, choices: Iterable[tuple[str, ...]], what: str) -> tuple[str, ...]:
    for names in choices:
        if all(name in record for name in names):
            return names
    wanted = " or ".join(" and ".join(names) for names in choices)
    raise DataError(f"the data has columns {', '.join(record)}; {what} are read from {wanted}")


def _texts(settings: DataSettings) -> Iterator[str]:
    """Every text of every record; both sides of a pair, a dialogue and its summary."""
    names: tuple[str, ...] = ()
    for record in read_records(settings):
        if not names:
            alone: list[tuple[str, ...]] = [(name,) for name in _TEXT if name in record]
            choices = alone or [*_PAIRS, *_TO_TARGET, (_TEXT[0],)]
            names = _columns(record, choices, "texts")
        for name in names:
            if isinstance(record[name], str) and record[name].strip():
                yield record[name]


def _windows(settings: DataSettings, tokenizer: Any, length: int) -> list[Batch]:
    """Windows of running text, each full; documents follow one another behind an end-of-text token."""
    import random

    import torch

    joint = _is_running_text(settings.data)
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
        islice(_texts(settings), settings.samples * (_SPREAD if _is_running_text(settings.data) else 1))
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
    for record in islice(read_records(settings), settings.samples):
        if not names:
            names = _columns(record, [*_TO_TARGET, *((name,) for name in _TEXT)], "texts")
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
    import io

    from PIL import Image

    name = ""
    for record in read_records(settings):
        if not name:
            name = _columns(record, [(column,) for column in _PICTURE], "images")[0]
        picture = record[name]
        data = picture.get("bytes") if isinstance(picture, dict) else picture
        if isinstance(data, bytes):
            picture = Image.open(io.BytesIO(data))
        yield picture, record


def _images(settings: DataSettings, folder: Path) -> list[Batch]:
    processor = _load(folder, "AutoImageProcessor")
    pictures = []
    for picture, _ in islice(_pictures(settings), settings.samples):
        mean = getattr(processor, "image_mean", None) or [0, 0, 0]
        pictures.append(picture.convert("L" if len(mean) == 1 else "RGB"))
    if len(pictures) < 2:
        raise DataError(f"{settings.data}: {len(pictures)} images are too few to calibrate on")
    return [
        {"pixel_values": processor(images=pictures[at : at + 16], return_tensors="pt")["pixel_values"]}
        for at in range(0, len(pictures), 16)
    ]


def _captioned_images(settings: DataSettings, folder: Path, model: Any) -> list[Batch]:
    processor, tokenizer = _load(folder, "AutoImageProcessor"), _load(folder, "AutoTokenizer")
    length = _length(settings, model, tokenizer)
    pictures, captions = [], []
    for picture, record in islice(_pictures(settings), settings.samples):
        name = _columns(record, (("caption",), ("text",)), "captions")[0]
        caption = record[name][0] if isinstance(record[name], list) else record[name]
        pictures.append(picture.convert("RGB"))
        captions.append(caption)
    if len(pictures) < 2:
        raise DataError(f"{settings.data}: {len(pictures)} images are too few to calibrate on")
    batches = []
    for at in range(0, len(pictures), 16):
        batch = _encode(tokenizer, captions[at : at + 16], length)
        batch.pop("token_type_ids", None)
        batch["pixel_values"] = processor(images=pictures[at : at + 16], return_tensors="pt")["pixel_values"]
        batches.append(batch)
    return batches
