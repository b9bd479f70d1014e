"""`gqkva export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gqkva_convert.cli.options import Json, Model
from gqkva_convert.cli.output import byte_progress, human_bytes, human_count, print_json


def export_command(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    architecture: Annotated[
        str | None,
        typer.Option(
            help="deci: a Llama whose layers keep key/value heads of their own number, for llama.cpp; "
            "by default a stock architecture.",
            show_default=False,
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="Largest output file, such as 2GB; by default as the source.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT once the new checkpoint is complete.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rewrite a grouped checkpoint as a stock one that computes the same."""
    from gqkva_convert.conversion.convert import write
    from gqkva_convert.conversion.export import prepare_export
    from gqkva_convert.conversion.inspect import cache_bytes

    conversion = prepare_export(model, out, architecture=architecture, max_shard_size=max_shard_size)
    with byte_progress(f"writing {conversion.target}", conversion.steps.nbytes) as progress:
        write(conversion, overwrite=overwrite, progress=progress)
    data, source = conversion.to_dict(), conversion.model
    blocks = conversion.plan.blocks
    cache = [
        cache_bytes(source, layouts, "self")
        for layouts in ([block.source for block in blocks], [block.target for block in blocks])
    ]
    model_type = conversion.plan.architecture or source.family.model_type
    result = {
        "folder": str(conversion.target),
        "model_type": model_type,
        "parameters": [data["source_parameters"], data["parameters"]],
        "bytes": [data["source_bytes"], data["bytes"]],
        "kv_cache_bytes_per_token": cache,
    }
    if as_json:
        print_json(result)
        return
    variants = " and ".join(dict.fromkeys(block.target.name for block in blocks))
    parameters, sizes = result["parameters"], result["bytes"]
    typer.echo(
        f"{conversion.target}: {architecture or f'stock {model_type}'}, {variants}, "
        f"parameters {human_count(parameters[0])} -> {human_count(parameters[1])}, "
        f"weights {human_bytes(sizes[0])} -> {human_bytes(sizes[1])}, "
        f"KV cache {human_bytes(cache[0])} -> {human_bytes(cache[1])} a token"
    )
