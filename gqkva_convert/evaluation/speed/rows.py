"""Rows of results, and what two models' rows say together."""

from __future__ import annotations

from typing import Any

from gqkva_convert.data.names import short_name

CONVERTED, ORIGINAL = "converted", "original"


def shown_names(result: dict[str, Any]) -> dict[str, str]:
    """What a reader calls the models of a result: whatever stood beside the converted one has a name."""
    other = result["against"]
    return {CONVERTED: "this model", ORIGINAL: short_name(other) if other else ORIGINAL}


_MEASURED = (
    "prefill_tokens_per_second",
    "samples_per_second",
    "time_to_first_token_seconds",
    "prefill_seconds_spread",
    "prefill_rounds",
    "prefill_chunk",
    "decode_tokens_per_second",
    "decode_seconds",
    "decode_seconds_spread",
    "decode_floor_seconds",
    "of_limit",
    "bytes_per_step",
    "kv_cache_bytes",
    "peak_memory_bytes",
    "interleaved",
)


def empty_row(name: str, context: int, batch: int) -> dict[str, Any]:
    """A row in which nothing is measured yet."""
    return {"model": name, "context": context, "batch": batch, **dict.fromkeys(_MEASURED), "skipped": None}


def speedups(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as fast as the original the converted model is, where both were measured."""
    measured = {(row["context"], row["batch"], row["model"]): row for row in rows if row["skipped"] is None}
    found = []
    for (context, batch, name), row in measured.items():
        base = measured.get((context, batch, ORIGINAL))
        if name != CONVERTED or base is None:
            continue
        entry: dict[str, Any] = {
            "context": context,
            "batch": batch,
            "prefill": base["time_to_first_token_seconds"] / row["time_to_first_token_seconds"],
            **dict.fromkeys(("decode", "ideal", "of_ideal")),
        }
        if row["decode_seconds"] is not None:
            decode = base["decode_seconds"] / row["decode_seconds"]
            ideal = base["bytes_per_step"] / row["bytes_per_step"]
            entry |= {"decode": decode, "ideal": ideal, "of_ideal": decode / ideal}
        found.append(entry)
    return found
