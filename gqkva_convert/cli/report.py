"""`gqkva report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqkva_convert.cli.options import Json
from gqkva_convert.cli.output import print_json


def report_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output of `gqkva convert`.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Write report.html into a folder: what was done, what it costs, what it gains, with pictures."""
    from gqkva_convert.hub.report import report

    written = report(folder)
    if as_json:
        print_json({"written": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(path)
