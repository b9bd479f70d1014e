"""`gqkva run`."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

import gqkva_convert
from gqkva_convert.cli.derived import body_of
from gqkva_convert.cli.output import print_json, print_table
from gqkva_convert.units import human_bytes

if TYPE_CHECKING:
    from gqkva_convert.recipes.commands import CommandLine


def run_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Run a recipe: several commands; steps that are up to date are skipped."""
    # With --json the steps' own tables are no result.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        result = gqkva_convert.run(**arguments, watch=_announce, call=_call)
    if as_json:
        print_json(result)
    elif arguments.get("dry_run"):
        _print_estimates(result)
    else:
        _print(result)


def _call(line: CommandLine) -> None:
    """Run a step as its command runs, with progress and tables."""
    body_of(line.step.command)(line.keywords(), False)


def _announce(line: CommandLine, number: int, count: int, done: bool) -> None:
    typer.echo(f"[{number}/{count}] {line}{' (done before)' if done else ''}", err=True)


def _print(result: dict[str, Any]) -> None:
    rows = (
        (step["name"], "done before" if step["left_out"] else "done", f"{step['seconds']:,.1f}")
        for step in result["steps"]
    )
    print_table(f"{result['recipe']}: {result['work']}", ("step", "", ">seconds"), rows)
    for step in result["steps"]:
        for path in step["outputs"]:
            typer.echo(path)


def _print_estimates(data: dict[str, Any]) -> None:
    typer.echo(f"{data['description']}\nneeds: {data['needs']}")
    if data["expect"]:
        typer.echo(f"expect: {data['expect']}")
    rows = (
        (
            step["name"],
            _duration(step["seconds"]),
            "-" if step["memory_bytes"] is None else human_bytes(step["memory_bytes"]),
            "-" if not step["disk_bytes"] else human_bytes(step["disk_bytes"]),
            "-" if not step["download_bytes"] else human_bytes(step["download_bytes"]),
            step["note"],
        )
        for step in data["steps"]
    )
    columns = ("step", ">time", ">memory", ">disk", ">download", "")
    print_table(f"{data['recipe']}, on {data['speed']}", columns, rows)
    known = [step["seconds"] for step in data["steps"] if step["seconds"] is not None]
    left = len(data["steps"]) - len(known)
    together = f"together about {_duration(sum(known))}" if known else "no step's time is estimated"
    typer.echo(f"{together}{f'; {left} steps are not estimated' if known and left else ''}\n")
    for step in data["steps"]:
        typer.echo(step["command"])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for limit, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= limit:
            return f"{seconds / limit:.1f} {unit}"
    return f"{seconds:.0f} s"
