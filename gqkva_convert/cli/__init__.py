"""The `gqkva` command: one small file a subcommand, each a thin wrapper over one public function."""

from __future__ import annotations

import signal
from inspect import getdoc
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gqkva_convert import COMMANDS
from gqkva_convert._version import __version__
from gqkva_convert.cli.derived import body_of, derived_command
from gqkva_convert.errors import GqkvaError, OtherProcessError, Terminated


class PublicFunctions(TyperGroup):
    """Commands that call the public functions of their names.

    A command's options are read from its function when the command is called, not for the list of commands:
    importing all functions takes longer than showing it. Our own errors are printed as one line and end with
    their code; bugs keep their traceback.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else derived_command(name), rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GqkvaError as error:
            if not isinstance(error, OtherProcessError):
                from gqkva_convert.checkpoint.hub_errors import redact

                typer.echo(f"error: {redact(str(error))}", err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            for hint in (*error.args, "interrupted"):
                typer.echo(hint, err=True)
            raise typer.Exit(error.exit_code if isinstance(error, Terminated) else 130) from error


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


app = typer.Typer(
    cls=PublicFunctions, no_args_is_help=True, pretty_exceptions_show_locals=False, add_completion=False
)


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Convert multi-head attention checkpoints to grouped attention."""
    signal.signal(signal.SIGTERM, _terminate)


def _listed() -> None:
    """Fill a command's place in the list of commands; `resolve_command` gives the command itself."""


for name in COMMANDS:
    app.command(name=name, help=getdoc(body_of(name)))(_listed)
