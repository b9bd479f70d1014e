"""`gqkva demo`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gqkva_convert.cli.options import Json
from gqkva_convert.cli.output import make_table, print_json, print_table, token_progress


def demo_command(
    gkv: Annotated[list[int], typer.Option(help="Key/value heads to convert to; give it several times.")] = [  # noqa: B006
        4,
        2,
        1,
    ],
    merge: Annotated[
        list[str],
        typer.Option(help="How heads become one, as for convert; give it several times."),
    ] = ["mean", "closed-form"],  # noqa: B006
    tokens: Annotated[int, typer.Option(help="About how many held-out tokens to measure on.")] = 32768,
    uptrain_tokens: Annotated[
        int, typer.Option(help="Tokens to train the conversion nearest to a quarter of the heads on; or 0.")
    ] = 32768,
    as_json: Json = False,
) -> None:
    """Convert the built-in model at several --gkv and show what each costs and saves; offline."""
    from gqkva_convert.demo_model.demo import demo

    measured = 1 + len(gkv) * len(merge) + (uptrain_tokens > 0)
    with token_progress("measuring", measured * tokens + uptrain_tokens) as progress:
        data = demo(gkv, merge=merge, tokens=tokens, uptrain_tokens=uptrain_tokens, progress=progress)
    if as_json:
        print_json(data)
        return
    _print(data)


def _print(data: dict[str, Any]) -> None:
    table = make_table(
        "built-in Llama, 8 heads",
        [
            ("model", False),
            ("variant", False),
            ("parameters", True),
            ("KV bytes per token", True),
            ("held-out loss", True),
            ("perplexity", True),
        ],
    )
    for row in data["rows"]:
        table.add_row(
            row["model"],
            row["variant"],
            f"{row['parameters']:,}",
            f"{row['kv_cache_bytes_per_token']:,}",
            f"{row['nats_per_token']:.3f}",
            f"{row['perplexity']:.2f}",
        )
    print_table(table)
    typer.echo(
        f"loss in nats per token over {data['held_out_tokens']:,} tokens of standard-library files "
        "that the model was not trained on"
    )
