"""`gqkva plan`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import make_table, print_json, print_table, stage_progress


def plan_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Choose groups and merge rules, and write them down for `gqkva convert --plan`."""
    with stage_progress() as stages:
        data = gqkva_convert.plan(**arguments, stages=stages)
    if as_json:
        print_json(data)
        return
    _print(data)


def _print(data: dict[str, Any]) -> None:
    table = make_table(
        f"{data['plan']['variant']}: grouping {data['plan']['grouping']}, merge {data['plan']['merge']}",
        [
            ("attention", False),
            ("layer", True),
            ("from", False),
            ("to", False),
            ("closed form loses", True),
            ("of neighbours", True),
            ("groups", False),
        ],
    )
    for row in data["rows"]:
        table.add_row(
            row["kind"],
            str(row["layer"]),
            row["from"],
            row["to"],
            "-" if row["loss"] is None else f"{100 * row['loss']:.2f} %",
            "-" if row["neighbour_loss"] is None else f"{100 * row['neighbour_loss']:.2f} %",
            row["groups"],
        )
    print_table(table)
    for name in data["written"]:
        typer.echo(name)
