"""`gqkva teacher`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, stage_progress
from gqkva_convert.units import human_bytes


def teacher_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Write down the source's likeliest tokens for the rows of a run, so that the student trains alone."""
    with stage_progress() as stages:
        result = gqkva_convert.teacher(**arguments, stages=stages)
    if as_json:
        print_json(result)
    else:
        typer.echo(
            f"{result['folder']}: {result['rows']:,} rows, {human_bytes(result['bytes'])}, held-out loss "
            f"{result['held_out_loss']:.4f}; give it to uptrain as --teacher with the same settings"
        )
