"""Sequence-to-sequence models: likelihood of the targets, and what they write themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from gqkva_convert.data.processors import load_processor, sequence_length
from gqkva_convert.data.records import TARGET_COLUMNS, find_columns
from gqkva_convert.errors import DataError, EvaluationError
from gqkva_convert.evaluation.agreement import AnswerScores, sample_sums, score_answers
from gqkva_convert.evaluation.metrics import Metric, mean
from gqkva_convert.evaluation.samples import draw, encode, is_text, records
from gqkva_convert.evaluation.subject import Subject

_BATCH = 16
ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def measure_targets(subject: Subject) -> tuple[list[Metric], int, dict[str, Any]]:
    """Perplexity of the targets; ROUGE and exact match of greedily written ones; agreement.

    Returns:
        Metrics, samples, and how they were measured.

    Raises:
        DataError: The data are not pairs of texts.
        EvaluationError: The package rouge-score is missing.
    """
    import torch

    rouge = _scorer()
    found = records(subject.settings)
    source, target = find_columns(found[0], TARGET_COLUMNS, "texts and targets")
    some = draw([record for record in found if is_text(record, source, target)], subject.settings)
    if not some:
        raise DataError(f"{subject.settings.data} holds no pair of a text and its target")
    tokenizer = load_processor(subject.folder, "AutoTokenizer")
    length = sequence_length(subject.settings.length, subject.model, tokenizer)
    progress = subject.begin(f"measuring {subject.settings.data}", len(some))
    size = subject.settings.batch_size or _BATCH
    scores = AnswerScores("token")
    written: list[dict[str, list[float]]] = [{name: [] for name in (*ROUGE, "exact")} for _ in subject.models]
    with torch.inference_mode():
        for start in range(0, len(some), size):
            part = some[start : start + size]
            inputs = encode(tokenizer, [record[source] for record in part], length)
            inputs.pop("token_type_ids", None)
            wanted = [str(record[target]) for record in part]
            for sample in _likelihood(subject, inputs, _labels(tokenizer, wanted, length)):
                scores.add(sample)
            for model, columns in zip(subject.models, written, strict=True):
                texts = _write(model, inputs, tokenizer, subject.settings.max_new_tokens)
                for made, right in zip(texts, wanted, strict=True):
                    values = rouge.score(right, made)
                    for name in ROUGE:
                        columns[name].append(values[name].fmeasure)
                    columns["exact"].append(float(made.strip() == right.strip()))
            progress(len(part))
    metrics = [*scores.likelihood(), *scores.agreement()]
    for name, title in (*ROUGE.items(), ("exact", "exact match")):
        ours, *theirs = ([np.asarray(columns[name])] for columns in written)
        metrics.append(Metric(title, "higher", mean, ours, theirs[0] if theirs else None))
    return metrics, len(some), {"length": length, "max_new_tokens": subject.settings.max_new_tokens}


def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise EvaluationError(
            "ROUGE needs the package rouge-score; pip install 'gqkva-convert[eval]'"
        ) from error
    return RougeScorer(list(ROUGE), use_stemmer=True)


def _labels(tokenizer: Any, wanted: list[str], length: int) -> Any:
    """Targets as token ids, padded on the right, and how long each is."""
    import torch

    rows = tokenizer(text_target=wanted, truncation=True, max_length=length)["input_ids"]
    counts = [len(row) for row in rows]
    labels = torch.full((len(rows), max(counts)), tokenizer.pad_token_id or 0, dtype=torch.long)
    for place, row in enumerate(rows):
        labels[place, : len(row)] = torch.tensor(row)
    return labels, counts


def _likelihood(subject: Subject, inputs: dict[str, Any], labelled: Any) -> list[dict[str, float]]:
    """Scores of the targets' tokens, summed over each target."""
    import torch

    labels, counts = labelled
    wanted = torch.zeros_like(labels, dtype=torch.bool)
    for place, count in enumerate(counts):
        wanted[place, :count] = True
    chosen = []
    for model in subject.models:
        begun = model.prepare_decoder_input_ids_from_labels(labels=labels.to(model.device))
        moved = {name: value.to(model.device) for name, value in inputs.items()}
        logits = model(**moved, decoder_input_ids=begun, use_cache=False).logits
        chosen.append(logits[wanted.to(model.device)])
    own, *other = chosen
    values = score_answers(own, other[0] if other else None, labels[wanted], accuracy=False)
    return sample_sums(values, counts)


def _write(model: Any, inputs: dict[str, Any], tokenizer: Any, max_new_tokens: int) -> list[str]:
    from transformers import DynamicCache, EncoderDecoderCache

    moved = {name: value.to(model.device) for name, value in inputs.items()}
    # Caches that grow: the one that transformers makes of itself has as many layers as a T5's encoder.
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids = model.generate(
        **moved, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, past_key_values=cache
    )
    return [str(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
