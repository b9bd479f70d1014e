"""`gqkva bench`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, print_table, stage_progress
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
    columns = [">context", ">batch", "model", ">prefill, tokens/s"]
    if generates:
        columns += [">first token, s", ">decoding, tokens/s", ">ms a step", ">quartiles", ">of the limit"]
        columns += [">KV cache"]
    else:
        columns += [">samples/s", ">s"]
    limit = human_bytes(result["bandwidth_bytes_per_second"])
    title = f"{result['model']}: {result['device']}, {result['dtype']}"
    title += f", {result['settings']['cache']} cache, {limit}/s" if generates else ""
    names = shown_names(result["against"])
    rows = [
        [f"{row['context']:,}", str(row["batch"]), names[row["model"]]]
        + (_measured(row, generates) if row["skipped"] is None else [])
        for row in result["rows"]
    ]
    print_table(title, [*columns, ">peak memory"], rows)
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
    columns, rows = [">context", ">batch", ">prefill"], []
    if any(entry["decode"] is not None for entry in result["speedup"]):
        columns += [">decoding", ">bytes moved allow", ">of that"]
    for entry in result["speedup"]:
        cells = [f"{entry['context']:,}", str(entry["batch"]), f"{entry['prefill']:.2f}"]
        if entry["decode"] is not None:
            cells += [f"{entry['decode']:.2f}", f"{entry['ideal']:.2f}", f"{entry['of_ideal']:.0%}"]
        rows.append(cells)
    print_table(f"times as fast as {result['against']}", columns, rows)
