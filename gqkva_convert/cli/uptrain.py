"""`gqkva uptrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gqkva_convert.cli.options import Json
from gqkva_convert.cli.output import make_table, print_json, print_table, training_progress
from gqkva_convert.cli.training_options import (
    Alpha,
    BatchSize,
    Data,
    Epochs,
    HeldOut,
    LearningRate,
    Length,
    Others,
    Overwrite,
    PerDevice,
    PretrainingTokens,
    Recipe,
    ReportTo,
    Resume,
    RunFolder,
    Samples,
    Seed,
    Teacher,
    Tokens,
    settings_of,
)
from gqkva_convert.errors import TrainingError


def uptrain_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output of `gqkva convert`.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Argument(help="Folder to write; by default DIR with -uptrained.", show_default=False),
    ] = None,
    recipe: Recipe = None,
    data: Data = None,
    held_out: HeldOut = None,
    teacher: Teacher = None,
    tokens: Tokens = None,
    samples: Samples = None,
    alpha: Alpha = None,
    pretraining_tokens: PretrainingTokens = None,
    num_train_epochs: Epochs = None,
    length: Length = None,
    batch_size: BatchSize = None,
    per_device_batch_size: PerDevice = None,
    learning_rate: LearningRate = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Terms and their weights, such as kl=1,task=0.5: task, kl, hidden, attention; by default kl "
            "with --teacher, task without.",
            show_default=False,
        ),
    ] = None,
    matching: Annotated[
        str | None,
        typer.Option(
            help="Share of the budget that first matches each attention block to the teacher's.",
            show_default=False,
        ),
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="all, attention, kv or lora; by default all.", show_default=False)
    ] = None,
    mixed_precision: Annotated[
        str | None,
        typer.Option(help="no, bf16 or fp16; by default as accelerate is set up.", show_default=False),
    ] = None,
    stop_within: Annotated[
        str | None,
        typer.Option(
            help="Stop once the held-out loss is within this share of the teacher's, such as 1%.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = None,
    others: Others = None,
    run_folder: RunFolder = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    any_model: Annotated[
        bool,
        typer.Option("--any-model", help="Train a folder that is no output of gqkva, a Hub id, or built-in."),
    ] = False,
    report_to: ReportTo = None,
    as_json: Json = False,
) -> None:
    """Train a converted model until it answers as its source did; alone or under `accelerate launch`."""
    options = {
        "data": data,
        "held_out": held_out,
        "teacher": teacher,
        "tokens": tokens,
        "samples": samples,
        "alpha": alpha,
        "pretraining_tokens": pretraining_tokens,
        "num_train_epochs": num_train_epochs,
        "length": length,
        "batch_size": batch_size,
        "per_device_batch_size": per_device_batch_size,
        "learning_rate": learning_rate,
        "loss": loss,
        "matching": matching,
        "train": train,
        "mixed_precision": mixed_precision,
        "stop_within": stop_within,
        "seed": seed,
    }
    from gqkva_convert.uptraining.uptrain import uptrain

    settings = chosen(recipe, others, options, resume)
    with training_progress() as watch:
        result = uptrain(
            folder,
            out,
            settings,
            run_folder=run_folder,
            resume=resume,
            overwrite=overwrite,
            any_model=any_model,
            report_to=tuple(report_to or ()),
            watch=watch,
        )
    show_result(result, as_json)


def chosen(recipe: Path | None, others: list[str] | None, options: dict[str, Any], resume: bool) -> Any:
    """Settings of a new run; None for one that goes on, whose settings are fixed.

    Raises:
        TrainingError: A run that goes on is given other settings.
    """
    given = [name for name, value in options.items() if value is not None]
    if not resume:
        return settings_of(recipe, others, **options)
    if given or others or recipe is not None:
        what = f"--{given[0].replace('_', '-')}" if given else "--set" if others else "--recipe"
        raise TrainingError(f"--resume goes on with the settings it began with; leave out {what}")
    return None


def show_result(result: dict[str, Any], as_json: bool) -> None:
    """Print what training did, once for all processes."""
    from gqkva_convert.uptraining.engine.processes import start_processes

    if not start_processes().is_main_process:
        return
    if as_json:
        print_json(result)
        return
    table = make_table(
        f"{result['folder']}: {result['tokens']:,} tokens in {result['steps']:,} steps, "
        f"{result['seconds']:,.0f} s",
        [("held-out loss", False), ("", True)],
    )
    table.add_row("before", f"{result['held_out_loss_before']:.4f}")
    table.add_row("after", f"{result['held_out_loss']:.4f}")
    if result["teacher_held_out_loss"]:
        table.add_row("original", f"{result['teacher_held_out_loss']:.4f}")
    print_table(table)
    if result["steps_left_out"]:
        typer.echo(f"{result['steps_left_out']} steps were not finite and left out", err=True)
    typer.echo(f"metrics and loss.png: {result['run_folder']}")
