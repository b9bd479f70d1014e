"""`gqkva init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqkva_convert.cli.options import Blocks, Json, KeyValueHeads, QueryHeads
from gqkva_convert.cli.output import human_count, print_json


def init_command(
    architecture: Annotated[
        str, typer.Argument(metavar="ARCH", help="Model type: vit, llama, gpt2, t5 ...", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    gkv: KeyValueHeads = None,
    gq: QueryHeads = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with a stock configuration or some keys of it; defaults for the rest.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Stock model class; by default the family's usual one.", show_default=False),
    ] = None,
    blocks: Blocks = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub id of a model whose tokenizer to take, or built-in.", show_default=False
        ),
    ] = None,
    tokenizer_data: Annotated[
        str | None,
        typer.Option(
            help="Data to train a byte-level BPE tokenizer on, with the configuration's vocab_size entries.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT once the new model is complete.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count parameters; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Make a model with fresh weights, with all stored heads or fewer, for pre-training from scratch."""
    from gqkva_convert.conversion.init import init

    result = init(
        architecture,
        out,
        gq=gq,
        gkv=gkv,
        blocks=blocks,
        config=config,
        task=task,
        tokenizer=tokenizer,
        tokenizer_data=tokenizer_data,
        seed=seed,
        dtype=dtype,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    if as_json:
        print_json(result)
    else:
        typer.echo(
            f"{result['folder']}: {result['class']}, {result['variant']}, "
            f"{human_count(result['parameters'])} parameters"
        )
