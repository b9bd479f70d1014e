"""The batches of a run, made of its rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gqkva_convert.uptraining.objectives.resampling import NUMBERS
from gqkva_convert.uptraining.objectives.teacher import StoredTeacher
from gqkva_convert.uptraining.rows.batches import Batch, StepPlan
from gqkva_convert.uptraining.rows.reading import Collator
from gqkva_convert.uptraining.rows.row import Rows


@dataclass(frozen=True)
class Feed:
    """Makes the batches of a run.

    Attributes:
        rows: The rows.
        collator: Makes batches of rows.
        plan: How the rows of a step are divided over passes and processes.
        stored: The teacher's likeliest tokens, where they were written down for these rows.
        resampled: Whether tokens of a batch are resampled, which goes by the numbers of its rows.
    """

    rows: Rows
    collator: Collator
    plan: StepPlan
    stored: StoredTeacher | None = None
    resampled: bool = False

    def batch(self, step: int, pass_number: int, process: int) -> Batch:
        """Make the batch of a process for one forward pass of a step."""
        numbers = list(self.plan.numbers(step, pass_number, process))
        rows = [self.rows.row(number) for number in numbers]
        batch = self.collator.batch(rows, numbers)
        if self.stored is not None:
            batch |= self.stored.of(rows)
        if self.resampled:
            batch[NUMBERS] = torch.tensor(numbers)
        return batch
