"""`gqkva uptrain`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, print_table, training_progress


def uptrain_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Train a converted model until it answers as its source did; alone or under `accelerate launch`."""
    with training_progress() as watch:
        result = gqkva_convert.uptrain(**arguments, watch=watch)
    show_result(result, as_json)


def show_result(result: dict[str, Any], as_json: bool) -> None:
    """Print what training did, once for all processes."""
    from gqkva_convert.uptraining.engine.processes import start_processes

    if not start_processes().is_main_process:
        return
    if as_json:
        print_json(result)
        return
    title = (
        f"{result['folder']}: {result['tokens']:,} tokens in {result['steps']:,} steps, "
        f"{result['seconds']:,.0f} s"
    )
    losses = {"before": "held_out_loss_before", "after": "held_out_loss", "original": "teacher_held_out_loss"}
    rows = [(name, f"{result[key]:.4f}") for name, key in losses.items() if result[key] is not None]
    print_table(title, ("held-out loss", ">"), rows)
    if result["steps_left_out"]:
        typer.echo(f"{result['steps_left_out']} steps were not finite and were skipped", err=True)
    typer.echo(f"metrics and loss.png: {result['run_folder']}")
