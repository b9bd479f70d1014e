"""`gqkva bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gqkva_convert.cli.options import Json
from gqkva_convert.cli.output import human_bytes, make_table, print_json, print_table, stage_progress
from gqkva_convert.evaluation.speed.rows import shown_names
from gqkva_convert.evaluation.speed.settings import parse_counts


def bench_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Checkpoint folder, stock or grouped.", show_default=False)
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Folder or Hub id to measure beside it: the source.", show_default=False
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            help="Positions in the cache, with commas between them; by default 4096,32768, or as many as the "
            "model has.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Sequences at once.")] = "1,16",
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate in each round.")] = 32,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    attn_implementation: Annotated[str, typer.Option(help="As transformers calls it.")] = "sdpa",
    cache: Annotated[
        str, typer.Option(help="static, allocated once, or dynamic, which grows by a copy at each token.")
    ] = "static",
    rounds: Annotated[int, typer.Option(help="Measurements of each number.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the tokens that are read.")] = 0,
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="Leave gqkva_bench.json and .png in the folder.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure prefill and decoding speed, KV cache and peak memory, beside the limit of the device."""
    from gqkva_convert.evaluation.speed.bench import bench

    with stage_progress() as progress:
        result = bench(
            folder,
            against=against,
            context=None if context is None else parse_counts("--context", context),
            batch=parse_counts("--batch", batch),
            new_tokens=new_tokens,
            dtype=dtype,
            device=device,
            attn_implementation=attn_implementation,
            rounds=rounds,
            cache=cache,
            seed=seed,
            save=save,
            progress=progress,
        )
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
    names = shown_names(result)
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
    """The numbers of a row."""
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
