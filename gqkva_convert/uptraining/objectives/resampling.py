"""Texts in which some tokens are the teacher's: what few texts are worth when they are read again and again.

The teacher says what comes next in any text, one that nobody wrote as well as one that was read before. As
augmentation for distillation: Jiao et al., 2020, TinyBERT, arXiv 1909.10351, section 3.2, where a masked
language model proposes the tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gqkva_convert.uptraining.objectives.losses import positions_at_once
from gqkva_convert.uptraining.objectives.runner import ModelRunner
from gqkva_convert.uptraining.rows.batches import IGNORED, Batch

# Numbers of a batch's rows, by which their tokens are drawn.
NUMBERS = "numbers"


class Resampling:
    """Replaces tokens by draws from what a teacher expects there, given the text before.

    What is drawn depends on the row's number alone, so that it is the same on any number of processes and
    after any interruption, and another each time the row is read.

    Args:
        teacher: Runs a causal language model.
        share: Of tokens that are replaced; the first of a text never is.
        seed: Seed of what is drawn.
    """

    def __init__(self, teacher: ModelRunner, share: float, seed: int) -> None:
        self.teacher = teacher
        self.share = share
        self.seed = seed

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """Replace tokens of a batch and its labels accordingly; returns it without `NUMBERS`.

        Args:
            batch: ``input_ids`` and ``labels``, ``(rows, positions)``, and `NUMBERS`, ``(rows,)``.
        """
        batch = dict(batch)
        drawn = self._drawn(batch.pop(NUMBERS), batch["input_ids"].shape[1]).to(batch["labels"].device)
        labels = batch["labels"].clone()
        replaced = (drawn[0] < self.share) & (labels != IGNORED)
        labels[replaced] = self._likely(batch, replaced, drawn[1][replaced])
        ids = batch["input_ids"].clone()
        ids[:, 1:] = torch.where(replaced[:, :-1], labels[:, :-1], ids[:, 1:])
        return {**batch, "input_ids": ids, "labels": labels}

    def _drawn(self, numbers: Tensor, positions: int) -> Tensor:
        """Draw two numbers in [0, 1) a position, ``(2, rows, positions)``, the same ones in longer rows."""
        rows = [
            np.random.default_rng([self.seed, number]).random((positions, 2)) for number in numbers.tolist()
        ]
        return torch.from_numpy(np.stack(rows)).float().movedim(-1, 0)

    def _likely(self, batch: Batch, wanted: Tensor, drawn: Tensor) -> Tensor:
        """Choose tokens after wanted positions: where the teacher's distribution reaches the number drawn."""
        found = self.teacher.run(batch).head_input
        assert found is not None
        head, states = self.teacher.head(), found[wanted.to(found.device)]
        chunk = positions_at_once(states.device, head.weight.shape[0])
        tokens = []
        for some, numbers in zip(
            torch.split(states, chunk), torch.split(drawn.to(states.device), chunk), strict=True
        ):
            with torch.autocast(states.device.type, enabled=False):
                reached = head.logits(some.to(head.weight.dtype)).softmax(-1).cumsum(-1)
            places = torch.searchsorted(reached, numbers[:, None] * reached[:, -1:], right=True)
            tokens.append(places[:, 0].clamp(max=reached.shape[1] - 1))
        return torch.cat(tokens).to(wanted.device) if tokens else wanted.new_empty(0, dtype=torch.long)
