"""`gqkva init`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json
from gqkva_convert.units import human_count


def init_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Make a model with fresh weights, with all stored heads or fewer, for pre-training from scratch."""
    result = gqkva_convert.init(**arguments)
    if as_json:
        print_json(result)
    else:
        typer.echo(
            f"{result['folder']}: {result['class']}, {result['variant']}, "
            f"{human_count(result['parameters'])} parameters"
        )
