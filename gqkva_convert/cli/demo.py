"""`gqkva demo`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, print_table, stage_progress


def demo_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Convert the built-in model at several --gkv and show what each costs and saves; offline."""
    with stage_progress() as stages:
        data = gqkva_convert.demo(**arguments, stages=stages)
    if as_json:
        print_json(data)
        return
    columns = ("model", "variant", ">parameters", ">KV bytes per token", ">held-out loss", ">perplexity")
    rows = (
        (
            row["model"],
            row["variant"],
            f"{row['parameters']:,}",
            f"{row['kv_cache_bytes_per_token']:,}",
            f"{row['nats_per_token']:.3f}",
            f"{row['perplexity']:.2f}",
        )
        for row in data["rows"]
    )
    print_table("built-in Llama, 8 heads", columns, rows)
    typer.echo(
        f"loss in nats per token over {data['held_out_tokens']:,} tokens of standard-library files "
        "that the model was not trained on"
    )
