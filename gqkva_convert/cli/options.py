"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint folder or Hub id.", show_default=False)
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.", show_default=False)]
KeyValueHeads = Annotated[
    int | None,
    typer.Option("--gkv", help="Key/value heads to keep: GQA, or MQA when 1.", show_default=False),
]
QueryHeads = Annotated[
    int | None,
    typer.Option(
        "--gq",
        help="Query heads to keep: GKVA, or MKVA when 1; with --gkv GQKVA (GQ x GKV = heads).",
        show_default=False,
    ),
]
Blocks = Annotated[
    str | None,
    typer.Option(
        help="Kinds of attention to convert, such as decoder (with cross-attention) or encoder,cross.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
