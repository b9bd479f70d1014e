"""Masked language models: how well they fill in words, and agreement with another model word by word."""

from __future__ import annotations

import random
from typing import Any

from gqkva_convert.data.processors import arguments, load_processor, sequence_length
from gqkva_convert.errors import DataError
from gqkva_convert.evaluation.agreement import AnswerScores, sample_sums, score_answers
from gqkva_convert.evaluation.samples import draw, texts
from gqkva_convert.evaluation.subject import Subject

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
    rows = draw(_pieces(subject, tokenizer, length), subject.settings)
    if not rows:
        raise DataError(f"{subject.settings.data} holds no text that could be measured")
    progress = subject.begin(f"measuring {subject.settings.data}", len(rows))
    scores = AnswerScores("masked token")
    size = subject.settings.batch_size or _BATCH
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    samples: dict[int, dict[str, float]] = {}
    with torch.inference_mode():
        for start in range(0, len(order), size):
            places = order[start : start + size]
            batch = tokenizer.pad({"input_ids": [rows[place] for place in places]}, return_tensors="pt")
            wanted = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
            for row, place in enumerate(places):
                wanted[row, _masked(rows[place], tokenizer, subject.settings.seed, place)] = True
            targets = batch["input_ids"][wanted]
            batch["input_ids"][wanted] = tokenizer.mask_token_id
            own, *other = (_logits(model, batch, wanted) for model in subject.models)
            values = score_answers(own, other[0] if other else None, targets, accuracy=True)
            samples |= zip(places, sample_sums(values, wanted.sum(1).tolist()), strict=True)
            progress(len(places))
    for place in sorted(samples):
        scores.add(samples[place])
    return scores, {"length": length, "masked_share": SHARE}


def _pieces(subject: Subject, tokenizer: Any, length: int) -> list[list[int]]:
    """Texts with their special tokens, long ones in pieces."""
    cut = {"truncation": True, "max_length": length, "return_overflowing_tokens": True}
    pieces = [list(ids) for text in texts(subject.settings) for ids in tokenizer([text], **cut)["input_ids"]]
    return [piece for piece in pieces if any(_maskable(piece, tokenizer))]


def _maskable(ids: list[int], tokenizer: Any) -> list[bool]:
    special = set(tokenizer.all_special_ids)
    return [token not in special for token in ids]


def _masked(ids: list[int], tokenizer: Any, seed: int, number: int) -> list[int]:
    choices = [place for place, may in enumerate(_maskable(ids, tokenizer)) if may]
    return random.Random(f"{seed} {number}").sample(choices, max(1, round(SHARE * len(choices))))


def _logits(model: Any, batch: Any, wanted: Any) -> Any:
    taken = arguments(model)
    inputs = {name: value.to(model.device) for name, value in batch.items() if name in taken}
    return model(**inputs).logits[wanted.to(model.device)]
