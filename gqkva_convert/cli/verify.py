"""`gqkva verify`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, print_table, stage_progress


def verify_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Prove that an output is what its plan says, and store the proof in its report.

    Exits with code 9 if it is not.
    """
    from gqkva_convert.conversion.verify import require

    folder = arguments["folder"]
    with stage_progress() as stages:
        result = gqkva_convert.verify(**arguments, stages=stages)
    if as_json:
        print_json(result)
    else:
        rows = (
            (check["check"], "ok" if check["passed"] else "FAILED", check["detail"])
            for check in result["checks"]
        )
        print_table(str(folder), ("check", "", "found"), rows)
    if not result["stored"]:
        typer.echo(f"the proof is not stored: {folder} cannot be written", err=True)
    require(result)
