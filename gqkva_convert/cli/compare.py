"""`gqkva compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, print_table


def compare_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Put measured models side by side; folders that differ in -seedN alone are repetitions."""
    from gqkva_convert.comparison.output import files, table

    data = gqkva_convert.compare(**arguments)
    if as_json:
        print_json(data)
        return
    headings, rows = table(data)
    print_table("models", [*headings[:2], *(f">{heading}" for heading in headings[2:])], rows)
    for note in data["notes"]:
        typer.echo(f"note: {note}", err=True)
    if "out" in arguments:
        for path in files(data, Path(arguments["out"])):
            typer.echo(path)
