"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder or Hub id.", show_default=False)]
Revision = Annotated[Optional[str], typer.Option(help="Branch, tag or commit of a Hub id.", show_default=False)]  # noqa: UP045
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
