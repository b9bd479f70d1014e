"""Output of commands: results go to stdout, progress to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import typer

from gqkva_convert.progress import Bytes, Note, Stages, no_progress

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, Task


def print_json(data: Any) -> None:
    """Print a result for another program."""
    typer.echo(json.dumps(data, indent=2))


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table, unwrapped where the output is not a terminal.

    Args:
        title: Printed above it, where it is not wrapped to the columns' width.
        columns: Headings; one that begins with ``>`` is of numbers, to the right.
        rows: Cells, which are no markup: paths and tensor names may hold brackets.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in columns:
        table.add_column(heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(title, style="bold", markup=False, emoji=False, highlight=False, soft_wrap=True)
    console.print(table)
    console.print()


@contextmanager
def stage_progress() -> Iterator[Stages]:
    """Show stages of work one below the other, each with its time left, on a terminal's stderr."""
    from rich.progress import DownloadColumn, MofNCompleteColumn, ProgressColumn, TransferSpeedColumn
    from rich.text import Text

    class Done(ProgressColumn):
        """Show how much of a stage is done: bytes with their speed, or a number of a number."""

        columns = (DownloadColumn(), TransferSpeedColumn())
        numbers = MofNCompleteColumn()

        def render(self, task: Task) -> Text:
            if not task.fields["is_bytes"]:
                return self.numbers.render(task)
            return Text(" ").join(column.render(task) for column in self.columns)

    with _progress(Done()) as progress:

        def begin(name: str, total: int) -> Callable[[int], None]:
            if isinstance(name, Note):
                typer.echo(f"note: {name}", err=True)
                return no_progress
            task = progress.add_task(name, total=total, is_bytes=isinstance(total, Bytes))
            return lambda count: progress.advance(task, count)

        yield begin


@contextmanager
def training_progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show a run's loss, speed and time left on a terminal's stderr; elsewhere a line a measurement."""
    from rich.progress import MofNCompleteColumn

    with _progress(MofNCompleteColumn()) as progress:
        task = progress.add_task("training", total=None)
        shown = {"loss": "-", "held-out": "-", "tokens/s": "-"}

        def watch(entry: dict[str, Any]) -> None:
            if "note" in entry:
                typer.echo(f"note: {entry['note']}", err=True)
                return
            if "stopped" in entry:
                typer.echo(
                    f"stopped and saved at step {entry['stopped']} of {entry['steps']}; "
                    "continue with --resume",
                    err=True,
                )
                return
            if "held_out_loss" in entry:
                shown["held-out"] = f"{entry['held_out_loss']:.4f}"
                if not progress.console.is_terminal:
                    typer.echo(
                        f"step {entry['step']} of {entry['steps']}, {entry['tokens']:,} tokens, "
                        f"{entry['seconds']:,.0f} s: held-out loss {entry['held_out_loss']:.4f}",
                        err=True,
                    )
            if "loss" in entry:
                shown["loss"] = f"{entry['loss']:.4f}"
                shown["tokens/s"] = f"{entry['tokens_per_second']:,.0f}"
            if "mfu" in entry:
                shown["MFU"] = f"{entry['mfu']:.0%}"
            described = ", ".join(f"{name} {value}" for name, value in shown.items())
            progress.update(task, completed=entry["step"], total=entry["steps"], description=described)

        yield watch


@contextmanager
def _progress(*columns: ProgressColumn) -> Iterator[Progress]:
    """Show progress bars on stderr where it is a terminal.

    Elsewhere they are not started: rich 13 ends even hidden ones with an empty line.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress if console.is_terminal else nullcontext():
        yield progress
