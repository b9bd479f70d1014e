"""`gqkva report`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json


def report_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Write report.html into a folder: what was done, what it costs, what it gains, with plots."""
    written = gqkva_convert.report(**arguments)
    if as_json:
        print_json({"written": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(path)
