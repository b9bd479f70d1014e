"""What `gqkva evaluate` and `gqkva bench` have left in a folder, read without trust."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.sidecars import BENCH, EVALUATION, REPORT, TRAINING
from gqkva_convert.errors import CheckpointError
from gqkva_convert.records.report import read_report

Interval = tuple[float, float]


class _Read(BaseModel):
    # Names with model_ are ours, not pydantic's.
    model_config = ConfigDict(allow_inf_nan=False, extra="ignore", protected_namespaces=())


class Metric(_Read):
    """One measured number, and the same of the original where that was measured too."""

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


class Result(_Read):
    """What was measured on one data set."""

    task: str
    data: str
    split: str | None = None
    samples: int | None = None
    settings: dict[str, Any] | None = None
    unit: str | None = None
    against: str | None = None
    metrics: list[Metric]
    versions: dict[str, Any] | None = None
    machine: str | None = None
    date: str | None = None
    model_sha256: str | None = None


class Evaluation(_Read):
    """The whole of gqkva_evaluation.json."""

    format_version: Literal[1]
    results: list[Result]


class Training(_Read):
    """What the last training of a folder took."""

    class Settings(_Read):
        """As far as comparisons tell them."""

        teacher: str | None = None

    settings: Settings = Settings()
    tokens: int
    steps: int | None = None
    seconds: float | None = None
    seconds_per_step: float | None = None
    held_out_loss: float | None = None
    device: str | None = None
    date: str | None = None
    versions: dict[str, Any] | None = None


class Row(_Read):
    """Speed and memory of one model at one context length and batch size."""

    model: Literal["converted", "original"]
    context: int
    batch: int
    prefill_tokens_per_second: float | None = None
    time_to_first_token_seconds: float | None = None
    decode_tokens_per_second: float | None = None
    kv_cache_bytes: float | None = None
    peak_memory_bytes: float | None = None


class Bench(_Read):
    """The whole of gqkva_bench.json."""

    format_version: Literal[1]
    device: str
    dtype: str
    against: str | None = None
    machine: str | None = None
    date: str | None = None
    versions: dict[str, Any] | None = None
    model_sha256: str | None = None
    settings: dict[str, Any] = {}
    rows: list[Row]


Format = TypeVar("Format", Evaluation, Bench, Training)


def read_evaluation(folder: Path) -> Evaluation | None:
    """The quality that was measured of a folder; None where none was.

    Raises:
        CheckpointError: The file is damaged or of another version.
    """
    return _read(folder / EVALUATION, Evaluation, "gqkva evaluate")


def read_bench(folder: Path) -> Bench | None:
    """The speed that was measured of a folder; raises as `read_evaluation` does."""
    return _read(folder / BENCH, Bench, "gqkva bench")


def read_training(folder: Path) -> Training | None:
    """The last training of a folder; None where it was not trained; raises as `read_evaluation` does."""
    report = folder / REPORT
    if not report.is_file():
        return _read(folder / TRAINING, Training, "gqkva uptrain")
    data = read_report(folder).get("uptraining")
    return None if data is None else _checked(data, report, Training, "gqkva uptrain")


def _read(path: Path, kind: type[Format], command: str) -> Format | None:
    return _checked(read_json(path), path, kind, command) if path.is_file() else None


def _checked(data: Any, path: Path, kind: type[Format], command: str) -> Format:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its top level"
        raise CheckpointError(
            f"{path} is not what `{command}` writes: {where}: {first['msg']}; remove it or measure again"
        ) from error
