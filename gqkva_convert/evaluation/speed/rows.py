"""Names of the models in results, and speedups from the rows of two models."""

from __future__ import annotations

from gqkva_convert.data.names import short_name
from gqkva_convert.records.bench import Row, Speedup

CONVERTED, ORIGINAL = "converted", "original"


def shown_names(against: str | None) -> dict[str, str]:
    """Name the models for a reader: this one, and the one measured beside it."""
    return {CONVERTED: "this model", ORIGINAL: short_name(against) if against else ORIGINAL}


def speedups(rows: list[Row]) -> list[Speedup]:
    """Compute how many times as fast as the original the converted model is, where both were measured."""
    measured = {(row.context, row.batch, row.model): row for row in rows if row.skipped is None}
    return [
        _speedup(row, measured[context, batch, "original"])
        for (context, batch, name), row in measured.items()
        if name == CONVERTED and (context, batch, ORIGINAL) in measured
    ]


def _speedup(row: Row, base: Row) -> Speedup:
    assert base.time_to_first_token_seconds is not None
    assert row.time_to_first_token_seconds is not None
    decode = ideal = of_ideal = None
    if row.decode_seconds is not None:
        assert base.decode_seconds is not None
        assert base.bytes_per_step is not None
        assert row.bytes_per_step is not None
        decode = base.decode_seconds / row.decode_seconds
        ideal = base.bytes_per_step / row.bytes_per_step
        of_ideal = decode / ideal
    prefill = base.time_to_first_token_seconds / row.time_to_first_token_seconds
    return Speedup(
        context=row.context, batch=row.batch, prefill=prefill, decode=decode, ideal=ideal, of_ideal=of_ideal
    )
