"""`gqkva plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gqkva_convert.cli.options import (
    Blocks,
    Calibration,
    CalibrationLength,
    CalibrationSamples,
    Dtype,
    Grouping,
    Json,
    KeyValueBudget,
    KeyValueHeads,
    Merge,
    Model,
    QueryHeads,
    Refine,
    Revision,
    Seed,
)
from gqkva_convert.cli.output import make_table, print_json, print_table, stage_progress


def plan_command(
    model: Model,
    out: Annotated[
        Path, typer.Option(help="Plan file to write; pictures go into the folder of its name.")
    ] = Path("plan.json"),
    gkv: KeyValueHeads = None,
    gq: QueryHeads = None,
    kv_budget: KeyValueBudget = None,
    blocks: Blocks = None,
    merge: Merge = None,
    grouping: Grouping = None,
    refine: Refine = None,
    calibration: Calibration = None,
    calibration_samples: CalibrationSamples = None,
    calibration_length: CalibrationLength = None,
    seed: Seed = None,
    dtype: Dtype = None,
    revision: Revision = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Draw head similarities, groups and losses.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the plan file and pictures.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Choose groups and merge rules, and write them down for `gqkva convert --plan`."""
    from gqkva_convert.planning.command import plan
    from gqkva_convert.plans.request import make_request

    request = make_request(
        gq=gq,
        gkv=gkv,
        kv_budget=kv_budget,
        blocks=blocks,
        grouping=grouping,
        merge=merge,
        refine=refine,
        seed=seed,
        dtype=dtype,
        calibration=calibration,
        samples=calibration_samples,
        length=calibration_length,
    )
    with stage_progress() as stages:
        data = plan(
            model, out, request, revision=revision, pictures=pictures, overwrite=overwrite, stages=stages
        )
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
