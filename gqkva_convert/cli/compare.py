"""`gqkva compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqkva_convert.cli.options import Json
from gqkva_convert.cli.output import make_table, print_json, print_table


def compare_command(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...", help="Checkpoint folders, or folders that hold some.", show_default=False
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Metric, as `gqkva evaluate` names it; give it several times. By default the first of each "
            "data set.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str, typer.Option(help="What pictures have along their axis: parameters, bytes or kv-cache.")
    ] = "parameters",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for comparison.json, comparison.md and a picture a metric; by default none.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put measured models side by side; folders that differ in -seedN alone are repetitions."""
    from gqkva_convert.comparison.output import table, write
    from gqkva_convert.comparison.rows import compare_models

    comparison = compare_models(folders, metrics=metric or (), size=size)
    written = [] if out is None else write(comparison, out)
    if as_json:
        print_json(comparison.to_dict())
        return
    headings, rows = table(comparison)
    drawn = make_table("models", [(heading, place > 1) for place, heading in enumerate(headings)])
    for row in rows:
        drawn.add_row(*row)
    print_table(drawn)
    for note in comparison.notes:
        typer.echo(f"note: {note}", err=True)
    for path in written:
        typer.echo(path)
