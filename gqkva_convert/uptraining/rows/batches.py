"""Rows of text as the tensors that a model takes, with labels; which rows each process takes in each step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gqkva_convert.data.sequences import decoder_inputs, pad
from gqkva_convert.data.tasks import CAUSAL, MASKED, TO_TARGET
from gqkva_convert.errors import DataError
from gqkva_convert.uptraining.rows.row import ANSWERS, Row

Batch = dict[str, Any]
# Labels that no loss looks at, as in transformers.
IGNORED = -100
# Where a causal batch is no padding. Models are not told: padding comes behind all that matters.
PRESENT = "present"
_MASKED_SHARE = 0.15


@dataclass(frozen=True)
class StepPlan:
    """Division of the rows of a step over passes and processes.

    Attributes:
        batch_size: Rows of a step.
        per_device: Rows of one forward pass.
        processes: Number of processes.
    """

    batch_size: int
    per_device: int
    processes: int

    @property
    def accumulation(self) -> int:
        """Count the forward passes of a step on each process."""
        return self.batch_size // (self.per_device * self.processes)

    def numbers(self, step: int, pass_number: int, process: int) -> range:
        """Return the numbers of the rows that a process takes in one forward pass of a step."""
        start = step * self.batch_size + (pass_number * self.processes + process) * self.per_device
        return range(start, start + self.per_device)


class TextBatches:
    """Makes batches of tokenised rows.

    Args:
        task: Name of the task.
        tokenizer: The model's own.
        model: The model, for how it begins a target.
        seed: Seed of what is masked.
    """

    def __init__(self, task: str, tokenizer: Any, model: Any, seed: int) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.config = model.config
        self.seed = seed
        self.pad = int(tokenizer.pad_token_id or 0)
        # Scores are divided by the highest of the data, where that is above 1.
        self.highest_score = 1.0
        self.special = set(tokenizer.all_special_ids)
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)

    def batch(self, rows: Sequence[Row], numbers: Sequence[int]) -> Batch:
        """Make inputs and labels; what is drawn at random is drawn by the rows' numbers.

        Raises:
            DataError: A token is none of the model's.
        """
        batch = self._made(rows, numbers)
        ids = [batch["input_ids"], *([batch["labels"]] if "decoder_input_ids" in batch else [])]
        highest = max(int(some.max()) for some in ids)
        if highest >= self.vocabulary:
            raise DataError(
                f"token {highest} ({self.tokenizer.decode([highest])!r}) is none of the {self.vocabulary} "
                "that the model embeds; put the tokenizer it was trained with into its folder"
            )
        return batch

    def _made(self, rows: Sequence[Row], numbers: Sequence[int]) -> Batch:
        if self.task == CAUSAL:
            return causal_batch(rows, self.pad)
        if self.task == MASKED:
            return self._masked(rows, numbers)
        if self.task == TO_TARGET:
            labels, _ = pad([row["labels"] for row in rows], IGNORED)
            inputs, mask = pad([row["input_ids"] for row in rows], self.pad)
            begun = decoder_inputs(labels, self.config)
            return {
                "input_ids": inputs,
                "attention_mask": mask,
                "decoder_input_ids": begun,
                "labels": labels,
            }
        sentences = [row["input_ids"] for row in rows]
        if rows[0].get("second_ids") is not None:
            sentences += [row["second_ids"] for row in rows]
        ids, mask = pad(sentences, self.pad)
        scores = torch.tensor([row.get("score", float("nan")) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": scores / self.highest_score}

    # By hand: rows are masked by their numbers, for exact resuming; transformers' collator draws in turn.
    def _masked(self, rows: Sequence[Row], numbers: Sequence[int]) -> Batch:
        ids, mask = pad([row["input_ids"] for row in rows], self.pad)
        labels = torch.full_like(ids, IGNORED)
        mask_id, vocabulary = self.tokenizer.mask_token_id, min(len(self.tokenizer), self.vocabulary)
        # Held-out rows have no number: they are masked by what they hold, and so always alike.
        drawn = numbers or [hash(tuple(map(int, row["input_ids"]))) for row in rows]
        for place, (row, number) in enumerate(zip(rows, drawn, strict=True)):
            draw = random.Random(f"{self.seed} {number}")
            choices = [at for at, token in enumerate(row["input_ids"]) if int(token) not in self.special]
            for at in draw.sample(choices, max(1, round(_MASKED_SHARE * len(choices))) if choices else 0):
                labels[place, at] = ids[place, at]
                kind = draw.random()
                if kind < 0.8:
                    ids[place, at] = mask_id
                elif kind < 0.9:
                    ids[place, at] = draw.randrange(vocabulary)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def causal_batch(rows: Sequence[Row], padding: int) -> Batch:
    """Make a batch of rows of one or several texts each: labels are the next tokens of the same text.

    Where only some tokens count in the loss, as an assistant's, the others are no labels.

    Where a row holds several texts, positions begin at 0 with each, by which transformers keeps them from
    seeing each other.
    """
    ids, present = pad([row["input_ids"] for row in rows], padding)
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = ids[:, 1:].masked_fill(present[:, 1:] == 0, IGNORED)
    if ANSWERS in rows[0]:
        counting, _ = pad([row[ANSWERS] for row in rows], 0)
        labels[:, :-1].masked_fill_(counting[:, 1:] == 0, IGNORED)
    positions = torch.arange(ids.shape[1]).expand_as(ids).clone()
    packed = False
    for place, row in enumerate(rows):
        for start in row["starts"]:
            if start > 0:
                packed = True
                labels[place, start - 1] = IGNORED
                positions[place, start:] = torch.arange(ids.shape[1] - int(start))
    batch = {"input_ids": ids, "labels": labels}
    if packed:
        batch["position_ids"] = positions
    if not bool(present.all()):
        batch[PRESENT] = present
    return batch


@dataclass(frozen=True)
class Counts:
    """Counts that sums of losses are divided by.

    Attributes:
        items: Labelled tokens, images, or pairs of texts.
        positions: Tokens that are no padding, or images.
    """

    items: int
    positions: int


def present_positions(batch: Batch) -> Tensor | None:
    """Return the mask ``(rows, positions)`` of what is no padding; None for all."""
    mask: Tensor | None = batch.get("attention_mask", batch.get(PRESENT))
    return mask


def count(batch: Batch) -> Counts:
    """Count the items and positions of one batch."""
    labels = batch["labels"]
    if "input_ids" not in batch:
        return Counts(len(labels), len(labels))
    items = int((labels != IGNORED).sum()) if labels.ndim == 2 else len(labels)
    mask = present_positions(batch)
    read = batch["input_ids"].numel() if mask is None else mask.sum()
    targets = items if "decoder_input_ids" in batch else 0
    return Counts(items, int(read) + targets)
