"""Sequence-to-sequence models: likelihood of the targets, and quality of generated text."""

from __future__ import annotations

from typing import Any

import numpy as np

from gqkva_convert.data.pairs import TARGETS, PairReader
from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.sequences import cut_texts, decoder_inputs, encode, pad, sequence_length
from gqkva_convert.errors import DataError, EvaluationError
from gqkva_convert.evaluation.agreement import AnswerScores, sample_sums, score_answers
from gqkva_convert.evaluation.metrics import Metric, mean
from gqkva_convert.evaluation.samples import draw, records
from gqkva_convert.evaluation.subject import Subject, forward

_BATCH = 16
ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def measure_targets(subject: Subject) -> tuple[list[Metric], int, dict[str, Any]]:
    """Measure perplexity of the targets, ROUGE and exact match of greedy output, and agreement.

    Returns:
        Metrics, samples, and how they were measured.

    Raises:
        DataError: The data are not pairs of texts.
        EvaluationError: The package rouge-score is missing.
    """
    import torch

    rouge = _scorer()
    found = records(subject.settings)
    reader = PairReader(str(subject.settings.data), TARGETS, subject.settings.column)
    some = draw([pair for pair, _ in reader.read(found)], subject.settings)
    if not some:
        raise DataError(f"{subject.settings.data} holds no pair of a text and its target")
    subject.say(reader.reading)
    tokenizer = load_processor(subject.folder, "AutoTokenizer")
    length = sequence_length(subject.settings.length, subject.model, tokenizer)
    progress = subject.measuring(len(some))
    scores = AnswerScores("token")
    written: list[dict[str, list[float]]] = [{name: [] for name in (*ROUGE, "exact")} for _ in subject.models]
    with torch.inference_mode():
        for part in subject.batches(some, _BATCH):
            inputs = encode(tokenizer, [source for source, _ in part], length)
            inputs.pop("token_type_ids", None)
            wanted = [target for _, target in part]
            rows = cut_texts(tokenizer, wanted, length, as_target=True)
            for sample in _likelihood(subject, inputs, rows, tokenizer.pad_token_id or 0):
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
    settings = {"length": length, "max_new_tokens": subject.settings.max_new_tokens}
    return metrics, len(some), {**settings, "reading": reader.reading}


def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise EvaluationError(
            "ROUGE needs the package rouge-score; pip install 'gqkva-convert[eval]'"
        ) from error
    return RougeScorer(list(ROUGE), use_stemmer=True)


def _likelihood(
    subject: Subject, inputs: dict[str, Any], targets: list[list[int]], padding: int
) -> list[dict[str, float]]:
    """Score the targets' tokens, summed over each target."""
    labels, present = pad(targets, padding)
    wanted = present.bool()
    logits = []
    for model in subject.models:
        batch = {**inputs, "decoder_input_ids": decoder_inputs(labels, model.config)}
        logits.append(forward(model, batch, use_cache=False).logits[wanted.to(model.device)])
    values = score_answers(logits, labels[wanted], accuracy=False)
    return sample_sums(values, present.sum(1).tolist())


def _write(model: Any, inputs: dict[str, Any], tokenizer: Any, max_new_tokens: int) -> list[str]:
    from transformers import DynamicCache, EncoderDecoderCache

    moved = {name: value.to(model.device) for name, value in inputs.items()}
    # transformers sizes a T5's default cache by the encoder's layers, which is wrong for a deeper decoder.
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids = model.generate(
        **moved, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, past_key_values=cache
    )
    return [str(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
