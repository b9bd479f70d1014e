"""`gqkva pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqkva_convert.cli.options import Json
from gqkva_convert.cli.output import training_progress
from gqkva_convert.cli.training_options import (
    BatchSize,
    Data,
    HeldOut,
    LearningRate,
    Length,
    Others,
    Overwrite,
    PerDevice,
    Recipe,
    ReportTo,
    Resume,
    RunFolder,
    Samples,
    Seed,
    Tokens,
)
from gqkva_convert.cli.uptrain import chosen, show_result


def pretrain_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output of `gqkva init`.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Argument(help="Folder to write; by default DIR with -pretrained.", show_default=False),
    ] = None,
    recipe: Recipe = None,
    data: Data = None,
    held_out: HeldOut = None,
    tokens: Tokens = None,
    samples: Samples = None,
    length: Length = None,
    batch_size: BatchSize = None,
    per_device_batch_size: PerDevice = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    others: Others = None,
    run_folder: RunFolder = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    report_to: ReportTo = None,
    as_json: Json = False,
) -> None:
    """Train a model with fresh weights from scratch; the engine of `uptrain`, without a teacher."""
    options = {
        "data": data,
        "held_out": held_out,
        "tokens": tokens,
        "samples": samples,
        "length": length,
        "batch_size": batch_size,
        "per_device_batch_size": per_device_batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    from gqkva_convert.uptraining.uptrain import pretrain

    settings = chosen(recipe, others, options, resume)
    with training_progress() as watch:
        result = pretrain(
            folder,
            out,
            settings,
            run_folder=run_folder,
            resume=resume,
            overwrite=overwrite,
            report_to=tuple(report_to or ()),
            watch=watch,
        )
    show_result(result, as_json)
