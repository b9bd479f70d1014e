"""`gqkva bench`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import make_table, print_json, print_table, stage_progress
from gqkva_convert.evaluation.speed.rows import shown_names
from gqkva_convert.units import human_bytes


def bench_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Measure prefill and decoding speed, KV cache and peak memory, beside the limit of the device."""
    with stage_progress() as stages:
        result = gqkva_convert.bench(**arguments, progress=stages)
    if as_json:
        print_json(result)
        return
    _print_rows(result)
    if result["speedup"]:
        _print_speedups(result)


def _print_rows(result: dict[str, Any]) -> None:

    generates = result["settings"]["kind"] != "forward"
    columns = [("context", True), ("batch", True), ("model", False), ("prefill, tokens/s", True)]
    if generates:
        columns += [
            ("first token, s", True),
            ("decoding, tokens/s", True),
            ("ms a step", True),
            ("quartiles", True),
            ("of the limit", True),
            ("KV cache", True),
        ]
    else:
        columns += [("samples/s", True), ("s", True)]
    limit = human_bytes(result["bandwidth_bytes_per_second"])
    title = f"{result['model']}: {result['device']}, {result['dtype']}"
    title += f", {result['settings']['cache']} cache, {limit}/s" if generates else ""
    table = make_table(title, [*columns, ("peak memory", True)])
    names = shown_names(result["against"])
    for row in result["rows"]:
        cells = [f"{row['context']:,}", str(row["batch"]), names[row["model"]]]
        if row["skipped"] is None:
            cells += _measured(row, generates)
        table.add_row(*cells)
    print_table(table)
    for row in result["rows"]:
        where = f"{names[row['model']]}, context {row['context']:,}, batch {row['batch']}"
        if row["skipped"] is not None:
            typer.echo(f"skipped: {where}: {row['skipped']}")
        elif generates and row["prefill_chunk"] < row["context"]:
            typer.echo(f"note: {where}: the prompt was read {row['prefill_chunk']:,} positions at a time")
        if row["interleaved"] is False and result["against"] is not None:
            typer.echo(f"note: {where}: measured alone; both did not fit")


def _measured(row: dict[str, Any], generates: bool) -> list[str]:
    """Return the cells of a measured row."""
    cells = [f"{row['prefill_tokens_per_second']:,.0f}"]
    seconds = f"{row['time_to_first_token_seconds']:.3f}"
    if generates:
        first, third = (1e3 * seconds for seconds in row["decode_seconds_spread"])
        cells += [
            seconds,
            f"{row['decode_tokens_per_second']:,.1f}",
            f"{1e3 * row['decode_seconds']:.2f}",
            f"{first:.2f}-{third:.2f}",
            f"{row['of_limit']:.0%}",
            human_bytes(row["kv_cache_bytes"]),
        ]
    else:
        cells += [f"{row['samples_per_second']:,.1f}", seconds]
    peak = row["peak_memory_bytes"]
    return [*cells, "-" if peak is None else human_bytes(peak)]


def _print_speedups(result: dict[str, Any]) -> None:
    columns = [("context", True), ("batch", True), ("prefill", True)]
    if any(entry["decode"] is not None for entry in result["speedup"]):
        columns += [("decoding", True), ("bytes moved allow", True), ("of that", True)]
    table = make_table(f"times as fast as {result['against']}", columns)
    for entry in result["speedup"]:
        cells = [f"{entry['context']:,}", str(entry["batch"]), f"{entry['prefill']:.2f}"]
        if entry["decode"] is not None:
            cells += [f"{entry['decode']:.2f}", f"{entry['ideal']:.2f}", f"{entry['of_ideal']:.0%}"]
        table.add_row(*cells)
    print_table(table)
