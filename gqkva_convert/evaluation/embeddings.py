"""Text encoders: order of text pairs by cosine, and distance of embeddings from another model's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.modules import read_modules
from gqkva_convert.data.pairs import COMPARED, PairReader
from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.records import read_score, score_column
from gqkva_convert.data.sequences import encode, sequence_length
from gqkva_convert.errors import DataError, EvaluationError
from gqkva_convert.evaluation.metrics import Metric, mean, spearman
from gqkva_convert.evaluation.samples import draw, records
from gqkva_convert.evaluation.sentence_modules import after_pooling
from gqkva_convert.evaluation.subject import Subject, forward
from gqkva_convert.progress import Progress

_BATCH = 32


def measure_embeddings(subject: Subject) -> tuple[list[Metric], int, str, dict[str, Any]]:
    """Measure the rank correlation of cosines and scores, and the mean cosine with the other model.

    Returns:
        Metrics, samples, what a sample is, and how they were measured.

    Raises:
        DataError: The data are neither pairs of texts nor texts.
        EvaluationError: They are texts without scores, and there is no other model.
    """
    found = records(subject.settings)
    data = str(subject.settings.data)
    reader = PairReader(data, COMPARED, subject.settings.column)
    usable = list(reader.read(found))
    names = reader.names
    score = score_column(found[0], names, data)
    is_scored = score is not None
    if not is_scored and subject.against is None:
        raise EvaluationError(
            f"{subject.settings.data} has no scored pairs, so an encoder is measured on it against another "
            "model; give --against"
        )
    if not usable:
        raise DataError(f"{subject.settings.data} has no record with text under {' and '.join(names)}")
    subject.say(reader.reading)
    some = draw(usable, subject.settings)
    scores = np.asarray([read_score(record[score], data) for _, record in some if score is not None])
    tokenizer = load_processor(subject.folder, "AutoTokenizer")
    wanted = sequence_length(subject.settings.length, subject.model, tokenizer)
    length = int(min(wanted, longest_of(subject.folder)))
    pooling = pooling_of(subject.folder)
    head = after_pooling(subject.folder)
    progress = subject.measuring(len(some) * len(names))
    sides = []
    for side in range(len(names)):
        texts = [pair[side] for pair, _ in some]
        sides.append(_embed(subject, texts, tokenizer, length, pooling, head, progress))
    metrics = []
    if is_scored:
        cosines = [(first * second).sum(-1) for first, second in zip(*sides, strict=True)]
        against = [cosines[1], scores] if subject.against is not None else None
        metrics.append(Metric("Spearman correlation", "higher", spearman, [cosines[0], scores], against))
    if subject.against is not None:
        likeness = np.mean([(side[0] * side[1]).sum(-1) for side in sides], axis=0)
        metrics.append(Metric("cosine with the original", "higher", mean, [likeness]))
    unit = "pairs" if len(names) == 2 else "texts"
    return metrics, len(some), unit, {"pooling": pooling, "length": length, "reading": reader.reading}


def longest_of(folder: Path) -> float:
    """Return the tokens at which sentence-transformers cuts a text; infinite without a limit."""
    path = folder / "sentence_bert_config.json"
    longest = read_json(path).get("max_seq_length") if path.is_file() else None
    return longest if isinstance(longest, int) and longest > 0 else math.inf


def pooling_of(folder: Path) -> str:
    """Return the pooling that sentence-transformers uses: "cls" if the folder says so, else "mean"."""
    named = [module.path for module in read_modules(folder) if module.kind == "Pooling"]
    path = folder / (named or ["1_Pooling"])[0] / "config.json"
    if not path.is_file():
        return "mean"
    config = read_json(path)
    if config.get("pooling_mode") in ("mean", "cls"):
        return str(config["pooling_mode"])
    wanted = [name for name in config if name.startswith("pooling_mode_") and config[name] is True]
    if wanted == ["pooling_mode_cls_token"]:
        return "cls"
    if wanted in ([], ["pooling_mode_mean_tokens"]):
        return "mean"
    raise EvaluationError(f"{path}: {', '.join(wanted)} is not measured here, mean and cls are")


def _embed(
    subject: Subject,
    sentences: list[str],
    tokenizer: Any,
    length: int,
    pooling: str,
    head: Callable[[Any], Any],
    progress: Progress,
) -> list[Any]:
    """Embed texts with every model: vectors of length 1, each result float64 ``(texts, width)``."""
    import torch

    rows: list[list[Any]] = [[] for _ in subject.models]
    order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))
    with torch.inference_mode():
        for places in subject.batches(order, _BATCH):
            batch = encode(tokenizer, [sentences[place] for place in places], length)
            for made, model in zip(rows, subject.models, strict=True):
                states = forward(model, batch).last_hidden_state.float()
                mask = batch["attention_mask"].to(states.device) if "attention_mask" in batch else None
                made.append(_pool(states, mask, pooling, head).double().cpu().numpy())
            progress(len(places))
    back = np.argsort(order)
    return [np.concatenate(made)[back] for made in rows]


def _pool(
    states: Any, mask: Any, pooling: str, head: Callable[[Any], Any] = lambda embeddings: embeddings
) -> Any:
    import torch.nn.functional as functional

    if pooling == "cls":
        return functional.normalize(head(states[:, 0]), dim=-1)
    if mask is None:
        return functional.normalize(head(states.mean(1)), dim=-1)
    weights = mask[..., None].to(states.dtype)
    return functional.normalize(head((states * weights).sum(1) / weights.sum(1).clamp(min=1)), dim=-1)
