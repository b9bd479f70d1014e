"""`gqkva inspect`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, print_table
from gqkva_convert.units import human_bytes, human_count


def inspect_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Show a model's heads, parameters and KV cache, and what each --gkv and --gq would give.

    Reads configuration and headers only; weights are neither read nor downloaded.
    """
    data = gqkva_convert.inspect(**arguments)
    if as_json:
        print_json(data)
        return
    _print_attention(data)
    _print_parameters(data)
    _print_options(data)


def _print_attention(data: dict[str, Any]) -> None:
    columns = {
        "kind": "attention",
        "layers": ">layers",
        "variant": "variant",
        "num_attention_heads": ">heads",
        "num_key_value_heads": ">KV heads",
        "head_dim": ">head_dim",
        "positions": "positions",
        "query_key_norm": "QK norm",
    }
    rows = ([str(row[name] or "-") for name in columns] for row in data["attention"])
    print_table(f"{data['model']}: {data['model_type']}", columns.values(), rows)
    proved = ", proved on this configuration before it is converted" if data["table"] == "generated" else ""
    typer.echo(f"supported: the table of {data['model_type']} is {data['table']}{proved}\n")
    named, stored = data["named_architecture"], data["architecture"]
    if named is not None and stored is not None and not named.endswith(stored):
        typer.echo(f"stored is a {stored}; config.json names {named}\n")
    if data["converted"]:
        made = data["converted"]
        state = "verified" if made["verified"] else "not verified yet"
        typer.echo(
            f"converted by gqkva: {made['variant']} from {made['source']}, merge {made['merge']}, {state}\n"
        )


def _print_parameters(data: dict[str, Any]) -> None:
    parts = data["parameters"]
    dtypes = ", ".join(f"{human_count(count)} {name}" for name, count in data["dtypes"].items())
    rows = (
        (name, f"{count:,}", f"{100 * count / parts['total']:.1f} %")
        for name, count in parts.items()
        if name != "total" and count
    )
    title = f"{human_count(parts['total'])} parameters, {human_bytes(data['bytes'])} ({dtypes})"
    if data["buffers"]["tensors"]:
        title += f", {human_bytes(data['buffers']['bytes'])} of it in {data['buffers']['tensors']} buffers"
    print_table(title, ("part", ">parameters", ">share"), rows)


def _print_options(data: dict[str, Any]) -> None:
    cache = data["kv_cache_bytes_per_token"]
    title = f"KV cache: {cache:,} bytes per token" if cache else "no KV cache (encoder)"
    if data["cross_cache_bytes_per_source_token"]:
        title += f", {data['cross_cache_bytes_per_source_token']:,} per encoder position"
    rows = []
    for row in data["options"]:
        flags = [f"--{name} {row[name]}" for name in ("gq", "gkv") if row[name] is not None]
        percent = row["kv_cache_percent"]
        parts = [
            " ".join(flags),
            row["variant"],
            human_count(row["parameters"]),
            f"{row['parameters_percent']:.1f}",
            f"{row['kv_cache_bytes_per_token']:,}",
            "-" if percent is None else f"{percent:.1f}",
            "stock" if row["is_stock"] else "grouped",
        ]
        rows.append(parts)
    columns = ("options", "gives", ">parameters", ">%", ">KV bytes per token", ">%", "written as")
    print_table(title, columns, rows)
