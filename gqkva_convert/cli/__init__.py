"""The `gqkva` command: one small file a subcommand, each a thin wrapper over one public function."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gqkva_convert._version import __version__
from gqkva_convert.cli import (
    bench,
    compare,
    convert,
    demo,
    evaluate,
    export,
    init,
    inspect,
    plan,
    pretrain,
    push,
    report,
    run,
    teacher,
    uptrain,
    verify,
)
from gqkva_convert.errors import GqkvaError, OtherProcessError, Terminated


class ReportErrors(TyperGroup):
    """Print our own errors as one line and exit with their code; let bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GqkvaError as error:
            if not isinstance(error, OtherProcessError):
                typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(error.exit_code if isinstance(error, Terminated) else 130) from error


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


app = typer.Typer(
    cls=ReportErrors, no_args_is_help=True, pretty_exceptions_show_locals=False, add_completion=False
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


app.command(name="inspect")(inspect.inspect_command)
app.command(name="plan")(plan.plan_command)
app.command(name="convert")(convert.convert_command)
app.command(name="evaluate")(evaluate.evaluate_command)
app.command(name="uptrain")(uptrain.uptrain_command)
app.command(name="teacher")(teacher.teacher_command)
app.command(name="bench")(bench.bench_command)
app.command(name="export")(export.export_command)
app.command(name="init")(init.init_command)
app.command(name="pretrain")(pretrain.pretrain_command)
app.command(name="verify")(verify.verify_command)
app.command(name="run")(run.run_command)
app.command(name="report")(report.report_command)
app.command(name="compare")(compare.compare_command)
app.command(name="push")(push.push_command)
app.command(name="demo")(demo.demo_command)
