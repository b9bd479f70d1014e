"""The record of a training run, in the report of a converted folder or in gqkva_training.json."""

from __future__ import annotations

from typing import Any

from gqkva_convert.records.record import Loss, Record


class Training(Record):
    """Settings, results and cost of a training run."""

    date: str | None = None
    versions: dict[str, Any] | None = None
    task: str | None = None
    settings: dict[str, Any] = {}
    learning_rate: float | None = None
    steps: int | None = None
    kept_step: int | None = None
    matching_steps: int | None = None
    tokens: int
    distinct_rows: int | None = None
    steps_left_out: int | None = None
    held_out_rows: int | None = None
    readings: list[dict[str, Any]] = []
    held_out_loss_before: Loss | None = None
    held_out_loss: float | None = None
    teacher_held_out_loss: Loss | None = None
    seconds: float | None = None
    seconds_per_step: float | None = None
    processes: int | None = None
    distributed_type: str | None = None
    mixed_precision: str | None = None
    device: str | None = None
    metrics: str | None = None
