"""`gqkva run`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gqkva_convert.cli.options import Json
from gqkva_convert.cli.output import human_bytes, make_table, print_json, print_table
from gqkva_convert.errors import RecipeError

if TYPE_CHECKING:
    from gqkva_convert.recipes.commands import CommandLine
    from gqkva_convert.recipes.run import Prepared


def run_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.", show_default=False)],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="variable=value or step.option=value, in place of the recipe's; give it several times.",
            show_default=False,
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the results; by default runs/ and the recipe's name.", show_default=False
        ),
    ] = None,
    begin_at: Annotated[
        str | None,
        typer.Option("--from", help="Run this step again, and all behind it.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the steps with sizes, time and memory; run and download nothing."
        ),
    ] = False,
    here: Annotated[
        bool,
        typer.Option(
            "--here", help="Reckon --dry-run with this machine, not with the GPUs that the recipe asks for."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: several commands, each left out where it is done already."""
    from gqkva_convert.recipes.run import prepare, require_step, run_recipe

    prepared = prepare(recipe, commands(), changes or (), work)
    if dry_run:
        require_step(prepared, begin_at)
        _dry_run(prepared, as_json, here)
        return
    if here:
        raise RecipeError("--here goes with --dry-run")
    # With --json the steps' own tables are no result.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        result = run_recipe(prepared, begin_at=begin_at, watch=_announce)
    if as_json:
        print_json(result)
        return
    _print(result)


def commands() -> dict[str, Any]:
    """Every command by name."""
    import typer.main

    from gqkva_convert.cli import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def run(
    recipe: str | Path,
    changes: Iterable[str] = (),
    *,
    work: str | Path | None = None,
    begin_at: str | None = None,
) -> dict[str, Any]:
    """Run a recipe; steps that are done are left out.

    Args:
        recipe: The YAML file.
        changes: ``variable=value`` or ``step.option=value``.
        work: Folder of the results; None for ``runs/`` and the recipe's name.
        begin_at: Name of a step that runs again, with all behind it.

    Returns:
        JSON data: what each step ran, how long it took, and whether it was left out.

    Raises:
        RecipeError: The recipe is wrong; says where.
        GqkvaError: As the step that failed; what was done before it stays done.
    """
    from gqkva_convert.recipes.run import prepare, run_recipe

    prepared = prepare(Path(recipe), commands(), changes, None if work is None else Path(work))
    return run_recipe(prepared, begin_at=begin_at)


def _announce(line: CommandLine, number: int, count: int, done: bool) -> None:
    typer.echo(f"[{number}/{count}] {line}{' (done before)' if done else ''}", err=True)


def _print(result: dict[str, Any]) -> None:
    table = make_table(
        f"{result['recipe']}: {result['work']}", [("step", False), ("", False), ("seconds", True)]
    )
    for step in result["steps"]:
        table.add_row(step["name"], "done before" if step["left_out"] else "done", f"{step['seconds']:,.1f}")
    print_table(table)
    for step in result["steps"]:
        for path in step["outputs"]:
            typer.echo(path)


def _dry_run(prepared: Prepared, as_json: bool, here: bool) -> None:
    from dataclasses import asdict

    from gqkva_convert.recipes.estimates import estimate_recipe, speed_of

    speed = speed_of(None if here else prepared.recipe.gpus)
    estimates = estimate_recipe(prepared.lines, prepared.recipe.assume, speed)
    if as_json:
        steps = [
            {"name": line.step.name, "command": str(line), **asdict(estimate)}
            for line, estimate in zip(prepared.lines, estimates, strict=True)
        ]
        needs = {"needs": prepared.recipe.needs, "expect": prepared.recipe.expect}
        speeds = {"operations_per_second": speed.operations, "speed": speed.source}
        print_json(
            {"recipe": str(prepared.path), "work": str(prepared.work), **needs, **speeds, "steps": steps}
        )
        return
    typer.echo(f"{prepared.recipe.description}\nneeds: {prepared.recipe.needs}")
    if prepared.recipe.expect:
        typer.echo(f"expect: {prepared.recipe.expect}")
    table = make_table(
        f"{prepared.path}, on {speed.source}",
        [("step", False), ("time", True), ("memory", True), ("disk", True), ("download", True), ("", False)],
    )
    for line, estimate in zip(prepared.lines, estimates, strict=True):
        table.add_row(
            line.step.name,
            _duration(estimate.seconds),
            "-" if estimate.memory_bytes is None else human_bytes(estimate.memory_bytes),
            "-" if not estimate.disk_bytes else human_bytes(estimate.disk_bytes),
            "-" if not estimate.download_bytes else human_bytes(estimate.download_bytes),
            estimate.note,
        )
    print_table(table)
    known = [estimate.seconds for estimate in estimates if estimate.seconds is not None]
    left = len(estimates) - len(known)
    together = f"together about {_duration(sum(known))}" if known else "no step's time is estimated"
    typer.echo(f"{together}{f'; {left} steps are not estimated' if known and left else ''}\n")
    for line in prepared.lines:
        typer.echo(str(line))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for limit, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= limit:
            return f"{seconds / limit:.1f} {unit}"
    return f"{seconds:.0f} s"
