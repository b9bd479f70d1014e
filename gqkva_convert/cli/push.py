"""`gqkva push`."""

from __future__ import annotations

from functools import partial
from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, print_table, stage_progress
from gqkva_convert.units import human_bytes


def push_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Send a verified folder with its model card to the Hugging Face Hub.

    The token is that of `hf auth login` or HF_TOKEN. Run the same command again to resume.
    """
    with stage_progress() as stages:
        result = gqkva_convert.push(**arguments, stages=stages, say=partial(typer.echo, err=True))
    if as_json:
        print_json(result)
    elif arguments.get("dry_run"):
        _print_plan(result)
    else:
        typer.echo(result["pr_url"] or result["commit_url"])


def _print_plan(data: dict[str, Any]) -> None:
    rows = [(file["name"], human_bytes(file["bytes"]), "") for file in data["files"]]
    rows += [(name, "", f"stays here: {reason}") for name, reason in data["left_here"].items()]
    print_table(f"{data['folder']} to {data['repo']}", ("file", ">size", ""), rows)
    for remark in data["remarks"]:
        typer.echo(f"note: {remark}")
    typer.echo(f"card: {data['card']}; --json prints it")
