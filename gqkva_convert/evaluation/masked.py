"""Masked language models: likelihood of masked tokens, and agreement with another model on each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from gqkva_convert.data.documents import Document
from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.sequences import divide_texts, sequence_length
from gqkva_convert.errors import DataError
from gqkva_convert.evaluation.agreement import AnswerScores, sample_sums, score_answers
from gqkva_convert.evaluation.samples import draw, texts
from gqkva_convert.evaluation.subject import Subject, forward

_BATCH = 32
# Share of a text's tokens that are masked, as BERT was trained (Devlin et al., 2019, arXiv 1810.04805).
SHARE = 0.15


def score_masked(subject: Subject) -> tuple[AnswerScores, dict[str, Any]]:
    """Score masked tokens of texts, or of pieces of a text that are as long as the model reads.

    Which tokens are masked is fixed by the seed and a text's number, the same for both models; each is
    replaced by the mask.

    Raises:
        DataError: There is no text, or no mask.
    """
    import torch

    tokenizer = load_processor(subject.folder, "AutoTokenizer")
    if tokenizer.mask_token_id is None:
        raise DataError(f"{subject.folder}: its tokenizer has no mask")
    length = sequence_length(subject.settings.length, subject.model, tokenizer)
    documents, reading = texts(subject.settings, tokenizer)
    rows = draw(_pieces(documents, tokenizer, length), subject.settings)
    if not rows:
        raise DataError(f"{subject.settings.data} holds no text that could be measured")
    subject.say(reading)
    progress = subject.measuring(len(rows))
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    samples: dict[int, dict[str, float]] = {}
    with torch.inference_mode():
        for places in subject.batches(order, _BATCH):
            batch = tokenizer.pad({"input_ids": [rows[place] for place in places]}, return_tensors="pt")
            wanted = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
            for row, place in enumerate(places):
                wanted[row, _masked(rows[place], tokenizer, subject.settings.seed, place)] = True
            targets = batch["input_ids"][wanted]
            batch["input_ids"][wanted] = tokenizer.mask_token_id
            logits = [forward(model, batch).logits[wanted.to(model.device)] for model in subject.models]
            values = score_answers(logits, targets, accuracy=True)
            samples |= zip(places, sample_sums(values, wanted.sum(1).tolist()), strict=True)
            progress(len(places))
    scores = AnswerScores.of("masked token", (samples[place] for place in sorted(samples)))
    return scores, {"length": length, "masked_share": SHARE, "reading": reading}


def _pieces(documents: Sequence[Document], tokenizer: Any, length: int) -> list[list[int]]:
    pieces = divide_texts(tokenizer, [document.text for document in documents], length)
    return [piece for piece in pieces if any(_maskable(piece, tokenizer))]


def _maskable(ids: list[int], tokenizer: Any) -> list[bool]:
    special = set(tokenizer.all_special_ids)
    return [token not in special for token in ids]


def _masked(ids: list[int], tokenizer: Any, seed: int, number: int) -> list[int]:
    choices = [place for place, may in enumerate(_maskable(ids, tokenizer)) if may]
    return random.Random(f"{seed} {number}").sample(choices, max(1, round(SHARE * len(choices))))
