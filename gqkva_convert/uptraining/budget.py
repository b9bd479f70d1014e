"""The steps that a run's budget pays for."""

from __future__ import annotations

import math
from typing import Any

from gqkva_convert.data.tasks import IMAGES
from gqkva_convert.errors import TrainingError
from gqkva_convert.uptraining.engine.schedule import Schedule
from gqkva_convert.uptraining.job import Job
from gqkva_convert.uptraining.rows.row import Rows
from gqkva_convert.uptraining.rows.stored import StoredRows
from gqkva_convert.uptraining.settings import TrainingSettings
from gqkva_convert.uptraining.trainable import learning_rate, matching_rate

# A step may read somewhat more than a small budget, which is said; what is meant otherwise fills the memory.
MOST_BUDGETS = 64


def make_schedule(job: Job, rows: Rows, model: Any, task: str, matching: float) -> Schedule:
    """Make the learning rates of a run's steps.

    Args:
        job: The run.
        rows: Its rows.
        model: What is trained.
        task: Its task.
        matching: Share of the steps that match attention blocks.

    Raises:
        TrainingError: The budget does not suit the task, or a step exceeds it by far.
    """
    settings = job.settings
    if task == IMAGES and settings.samples is None:
        raise TrainingError("images have no tokens; give --samples")
    wanted = _budget_rows(settings, rows) * settings.num_train_epochs
    if settings.batch_size > MOST_BUDGETS * max(1, wanted):
        raise TrainingError(
            f"a step of {settings.batch_size:,} rows is more than {MOST_BUDGETS} times the budget of "
            f"{math.ceil(wanted):,}; give a smaller --batch-size or a larger budget"
        )
    steps = max(1, math.ceil(wanted / settings.batch_size))
    matching_steps = min(steps - 1, round(matching * steps))
    return Schedule(
        steps,
        matching_steps,
        settings.lr_scheduler_type,
        math.ceil(settings.warmup_ratio * (steps - matching_steps)),
        learning_rate(settings, model, is_fresh=job.from_scratch),
        matching_rate(settings, model),
    )


def budget_note(settings: TrainingSettings, rows: Rows, task: str, steps: int) -> str | None:
    """Say where more is read than the budget, or the same rows again and again."""
    unit = "images" if task == IMAGES else "rows"
    asked = _budget_rows(settings, rows)
    if settings.batch_size > math.ceil(asked * settings.num_train_epochs):
        tokens = settings.batch_size * rows.tokens_per_row
        of_tokens = f", {tokens:,.0f} tokens" if task != IMAGES else ""
        return (
            f"a step reads {settings.batch_size:,} {unit}{of_tokens}: more than the budget; a smaller "
            "--batch-size keeps to it"
        )
    if isinstance(rows, StoredRows) and rows.count < math.floor(asked):
        passes = steps * settings.batch_size / rows.count
        return (
            f"{settings.data} gives {rows.count:,} {unit} to train on, fewer than the budget: they are "
            f"gone over {passes:.1f} times"
        )
    return None


def _budget_rows(settings: TrainingSettings, rows: Rows) -> float:
    """Return the rows of an epoch that the budget asks for."""
    tokens, samples = settings.token_budget, settings.samples
    return samples if samples is not None else (tokens or 0) / rows.tokens_per_row
