"""The record of `gqkva bench`: gqkva_bench.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from gqkva_convert.checkpoint.sidecars import BENCH
from gqkva_convert.records.record import Record, read_record


class Row(Record):
    """Speed and memory of one model at one context length and batch size; None where not measured."""

    model: Literal["converted", "original"]
    context: int
    batch: int
    prefill_tokens_per_second: float | None = None
    samples_per_second: float | None = None
    time_to_first_token_seconds: float | None = None
    prefill_seconds_spread: list[float] | None = None
    prefill_rounds: int | None = None
    prefill_chunk: int | None = None
    decode_tokens_per_second: float | None = None
    decode_seconds: float | None = None
    decode_seconds_spread: list[float] | None = None
    decode_floor_seconds: float | None = None
    of_limit: float | None = None
    bytes_per_step: int | None = None
    kv_cache_bytes: int | None = None
    peak_memory_bytes: int | None = None
    interleaved: bool | None = None
    skipped: str | None = None


class Speedup(Record):
    """Times as fast as the original, and as fast as the bytes moved would allow."""

    context: int
    batch: int
    prefill: float | None = None
    decode: float | None = None
    ideal: float | None = None
    of_ideal: float | None = None


class Bench(Record):
    """All of gqkva_bench.json."""

    format_version: Literal[1]
    device: str
    dtype: str
    machine: str | None = None
    date: str | None = None
    versions: dict[str, Any] | None = None
    settings: dict[str, Any] = {}
    bandwidth_bytes_per_second: float | None = None
    bandwidths: dict[str, float] = {}
    model: str | None = None
    against: str | None = None
    model_sha256: str | None = None
    rows: list[Row]
    speedup: list[Speedup] = []

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON data, with null for what was not measured."""
        return self.model_dump()


def read_bench(folder: Path) -> Bench | None:
    """Read the measured speed of a folder; None where none was measured.

    Raises:
        CheckpointError: The file is damaged or of another version.
    """
    return read_record(folder / BENCH, Bench, "gqkva bench")
