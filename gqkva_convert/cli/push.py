"""`gqkva push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqkva_convert.cli.options import Json
from gqkva_convert.cli.output import byte_progress, human_bytes, make_table, print_json, print_table


def push_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output of gqkva convert, verified.", show_default=False)
    ],
    repo_id: Annotated[
        str, typer.Argument(metavar="USER/REPO", help="Model repository on the Hub.", show_default=False)
    ],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Branch to push to; by default main.", show_default=False),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request in a repository that exists.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Message of the commit.", show_default=False)] = None,
    new_card: Annotated[
        bool, typer.Option("--card", help="Write a new model card over one that was edited.")
    ] = False,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Push what gqkva verify has not proven; the card says so.")
    ] = False,
    licence_checked: Annotated[
        bool,
        typer.Option(
            "--licence-checked", help="Push although the source's licence seems to forbid derived models."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent; nothing is asked of the Hub.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send a verified folder with its model card to the Hugging Face Hub.

    The token is that of `hf auth login` or HF_TOKEN. The same command goes on after an interruption.
    """
    from gqkva_convert.hub.push import check_place, prepare_push, push_bytes, send

    check_place(revision, create_pr)

    def say(line: str) -> None:
        typer.echo(line, err=True)

    with byte_progress(f"checking {folder}", push_bytes(folder)) as progress:
        prepared = prepare_push(
            folder,
            repo_id,
            new_card=new_card,
            unverified=unverified,
            licence_checked=licence_checked,
            progress=progress,
        )
    if dry_run:
        if as_json:
            print_json(prepared.to_dict())
            return
        table = make_table(f"{folder} to {repo_id}", [("file", False), ("size", True), ("", False)])
        for file in prepared.files:
            table.add_row(file.name, human_bytes(file.bytes), "")
        for name, reason in prepared.left.items():
            table.add_row(name, "", f"stays here: {reason}")
        print_table(table)
        for remark in prepared.remarks:
            typer.echo(f"note: {remark}")
        typer.echo(f"card: {prepared.card}; --json prints it")
        return
    try:
        result = send(
            prepared,
            private=private,
            revision=revision,
            create_pr=create_pr,
            message=message,
            new_card=new_card,
            say=say,
        )
    except KeyboardInterrupt:
        say("what has arrived on the Hub stays there for now; the same command goes on from it")
        raise
    if as_json:
        print_json(result)
        return
    typer.echo(result["pr_url"] or result["commit_url"])
