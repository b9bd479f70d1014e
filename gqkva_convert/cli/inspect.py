"""`gqkva inspect`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import make_table, print_json, print_table
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
    table = make_table(
        f"{data['model']}: {data['model_type']}",
        [
            ("attention", False),
            ("layers", True),
            ("variant", False),
            ("heads", True),
            ("KV heads", True),
            ("head_dim", True),
            ("positions", False),
            ("QK norm", False),
        ],
    )
    for row in data["attention"]:
        table.add_row(
            row["kind"],
            str(row["layers"]),
            row["variant"],
            str(row["num_attention_heads"]),
            str(row["num_key_value_heads"]),
            str(row["head_dim"]),
            row["positions"],
            row["query_key_norm"] or "-",
        )
    print_table(table)
    if data["converted"]:
        made = data["converted"]
        state = "verified" if made["verified"] else "not verified yet"
        typer.echo(
            f"converted by gqkva: {made['variant']} from {made['source']}, merge {made['merge']}, {state}\n"
        )


def _print_parameters(data: dict[str, Any]) -> None:
    parts = data["parameters"]
    dtypes = ", ".join(f"{human_count(count)} {name}" for name, count in data["dtypes"].items())
    table = make_table(
        f"{human_count(parts['total'])} parameters, {human_bytes(data['bytes'])} ({dtypes})",
        [("part", False), ("parameters", True), ("share", True)],
    )
    for name, count in parts.items():
        if name != "total" and count:
            table.add_row(name, f"{count:,}", f"{100 * count / parts['total']:.1f} %")
    print_table(table)


def _print_options(data: dict[str, Any]) -> None:
    cache = data["kv_cache_bytes_per_token"]
    title = f"KV cache: {cache:,} bytes per token" if cache else "no KV cache (encoder)"
    if data["cross_cache_bytes_per_source_token"]:
        title += f", {data['cross_cache_bytes_per_source_token']:,} per encoder position"
    table = make_table(
        title,
        [
            ("options", False),
            ("gives", False),
            ("parameters", True),
            ("%", True),
            ("KV bytes per token", True),
            ("%", True),
            ("written as", False),
        ],
    )
    for row in data["options"]:
        flags = [f"--{name} {row[name]}" for name in ("gq", "gkv") if row[name] is not None]
        percent = row["kv_cache_percent"]
        table.add_row(
            " ".join(flags),
            row["variant"],
            human_count(row["parameters"]),
            f"{row['parameters_percent']:.1f}",
            f"{row['kv_cache_bytes_per_token']:,}",
            "-" if percent is None else f"{percent:.1f}",
            "stock" if row["is_stock"] else "grouped",
        )
    print_table(table)
