"""The record of `gqkva evaluate`: gqkva_evaluation.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from gqkva_convert.checkpoint.jsonfile import replace_json
from gqkva_convert.checkpoint.sidecars import EVALUATION
from gqkva_convert.errors import OutputError
from gqkva_convert.records.record import Record, read_record

Interval = tuple[float, float]

# What a reader calls each task, by its id on the Hub. A title that is reworded stays in `_IDS`.
TITLES = {
    "text-generation": "language modelling",
    "fill-mask": "masked language modelling",
    "text2text-generation": "sequence to sequence",
    "image-classification": "image classification",
    "text-classification": "text classification",
    "sentence-similarity": "sentence similarity",
}
# Title of the tasks of lm-evaluation-harness, which all generate text.
HARNESS, HARNESS_TASK = "lm-eval", "text-generation"
# Files of before `task_id` hold the title alone.
_IDS = {title: name for name, title in TITLES.items()} | {HARNESS: HARNESS_TASK}
# Two results that are equal in these measure the same.
_SUBJECT = ("task", "data", "split", "against", "settings")


class Score(Record):
    """One metric of a model, and the same of the other model where that was measured too."""

    metric: str
    value: float
    interval: Interval | None = None
    against: float | None = None
    against_interval: Interval | None = None
    difference: float | None = None
    difference_interval: Interval | None = None
    better: Literal["lower", "higher"] | None = None

    @field_validator("interval", "against_interval", "difference_interval")
    @classmethod
    def _rises(cls, interval: Interval | None) -> Interval | None:
        if interval is not None and interval[0] > interval[1]:
            raise ValueError("an interval goes from low to high")
        return interval


class Result(Record):
    """The metrics of a model on one data set or task of lm-evaluation-harness."""

    # The title: earlier versions require it, print it, and know no `task_id`.
    task: str
    task_id: str | None = None
    data: str
    split: str | None = None
    samples: int | None = None
    unit: str | None = None
    metrics: list[Score]
    settings: dict[str, Any] | None = None
    reading: dict[str, Any] | None = None
    against: str | None = None
    model_sha256: str | None = None
    versions: dict[str, Any] | None = None
    machine: str | None = None
    date: str | None = None

    @model_validator(mode="after")
    def _has_a_task(self) -> Result:
        if self.task_id is None and self.task not in _IDS:
            raise ValueError(f"no task {self.task!r}")
        return self

    @property
    def hub_task(self) -> str:
        """Return the id of the task on the Hub."""
        return self.task_id or _IDS[self.task]

    @property
    def key(self) -> str:
        """Return a short key of the data or task that is measured."""
        found = self.to_dict()
        return _checksum([_resolved(found.get(part)) for part in _SUBJECT])

    def is_comparison(self, score: Score) -> bool:
        """Return whether a metric compares the two models, rather than being measured of each."""
        return self.against is not None and score.against is None


class Evaluation(Record):
    """All of gqkva_evaluation.json."""

    format_version: Literal[1]
    results: list[Result]


def read_evaluation(folder: Path) -> Evaluation | None:
    """Read the measured quality of a folder; None where none was measured.

    Raises:
        CheckpointError: The file is damaged or of another version.
    """
    return read_record(folder / EVALUATION, Evaluation, "gqkva evaluate")


def _results(folder: Path) -> list[Result]:
    found = read_evaluation(folder)
    return [] if found is None else found.results


def result_keys(folder: Path) -> dict[str, str]:
    """Return a checksum of each result of a folder, by the result's key."""
    return {result.key: _checksum(result.to_dict()) for result in _results(folder)}


def _resolved(name: Any) -> Any:
    """Return a path as an absolute one; anything else unchanged."""
    return str(Path(name).resolve()) if isinstance(name, str) and Path(name).exists() else name


def _checksum(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def remove_results(folder: Path, keys: Iterable[str]) -> None:
    """Remove results by their keys."""
    found, unwanted = _results(folder), set(keys)
    kept = [result for result in found if result.key not in unwanted]
    if len(kept) < len(found):
        _write(folder, kept)


def require_writable(folder: Path) -> None:
    """Refuse a folder that results cannot be written to, before hours of measuring.

    Raises:
        OutputError: It cannot be written.
        CheckpointError: Its earlier results are damaged.
    """
    _results(folder)
    scratch = folder / f".{EVALUATION}.partial"
    try:
        scratch.touch()
        scratch.unlink()
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}; use --no-save") from error


def add_results(folder: Path, results: list[Result]) -> None:
    """Write results in place of earlier ones of the same; the old file stays until the new one is complete.

    Raises:
        OutputError: The folder cannot be written.
    """
    new = {result.key for result in results}
    kept = [
        result
        for result in _results(folder)
        if result.key not in new and result.model_sha256 == results[0].model_sha256
    ]
    _write(folder, [*kept, *results])


def _write(folder: Path, results: list[Result]) -> None:
    path = folder / EVALUATION
    try:
        replace_json(path, Evaluation(format_version=1, results=results).to_dict())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; use --no-save") from error
