"""`gqkva verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqkva_convert.cli.options import Json, Revision
from gqkva_convert.cli.output import byte_progress, make_table, print_json, print_table


def verify_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output of gqkva convert.", show_default=False)
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The source, to recompute every tensor from.", show_default=False),
    ] = None,
    revision: Revision = None,
    layers: Annotated[
        int | None,
        typer.Option(
            help="Layers to run in the logit checks; by default as many as fit 2 GiB.",
            min=1,
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Prove that an output is what its plan says, and store the proof in its report.

    Exits with code 9 if it is not.
    """
    from gqkva_convert.conversion.verify import require, verify, verify_bytes

    with byte_progress(f"checking {folder}", verify_bytes(folder, against)) as progress:
        result = verify(folder, against, revision=revision, layers=layers, progress=progress)
    if as_json:
        print_json(result)
    else:
        table = make_table(str(folder), [("check", False), ("", False), ("found", False)])
        for check in result["checks"]:
            table.add_row(check["check"], "ok" if check["passed"] else "FAILED", check["detail"])
        print_table(table)
    if not result["stored"]:
        typer.echo(f"the proof is not stored: {folder} cannot be written", err=True)
    require(result)
