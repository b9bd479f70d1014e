"""`gqkva teacher`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqkva_convert.cli.options import Json, Model, Revision
from gqkva_convert.cli.output import human_bytes, print_json, stage_progress
from gqkva_convert.cli.training_options import (
    Data,
    HeldOut,
    Length,
    Others,
    Recipe,
    Seed,
    Tokens,
    settings_of,
)


def teacher_command(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    recipe: Recipe = None,
    data: Data = None,
    held_out: HeldOut = None,
    tokens: Tokens = None,
    length: Length = None,
    seed: Seed = None,
    others: Others = None,
    top_k: Annotated[int, typer.Option(help="Tokens kept a position; all others count as one.")] = 64,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Write down the source's likeliest tokens for the rows of a run, so that the student trains alone."""
    from gqkva_convert.uptraining.objectives.precompute import teacher

    settings = settings_of(
        recipe, others, data=data, held_out=held_out, tokens=tokens, length=length, seed=seed
    )
    with stage_progress() as stages:
        result = teacher(model, out, settings, top_k=top_k, revision=revision, stages=stages)
    if as_json:
        print_json(result)
    else:
        typer.echo(
            f"{result['folder']}: {result['rows']:,} rows, {human_bytes(result['bytes'])}, held-out loss "
            f"{result['held_out_loss']:.4f}; give it to uptrain as --teacher with the same settings"
        )
