"""`gqkva plan`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, print_table, stage_progress


def plan_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Choose groups and merge rules, and write them down for `gqkva convert --plan`."""
    with stage_progress() as stages:
        data = gqkva_convert.plan(**arguments, stages=stages)
    if as_json:
        print_json(data)
        return
    title = f"{data['plan']['variant']}: grouping {data['plan']['grouping']}, merge {data['plan']['merge']}"
    columns = ("attention", ">layer", "from", "to", ">closed form loses", ">of neighbours", "groups")
    rows = (
        (
            row["kind"],
            str(row["layer"]),
            row["from"],
            row["to"],
            _percent(row["loss"]),
            _percent(row["neighbour_loss"]),
            row["groups"],
        )
        for row in data["rows"]
    )
    print_table(title, columns, rows)
    for name in data["written"]:
        typer.echo(name)


def _percent(loss: float | None) -> str:
    return "-" if loss is None else f"{100 * loss:.2f} %"
