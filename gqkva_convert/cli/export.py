"""`gqkva export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    runtime: Annotated[
        str | None,
        typer.Option(
            help="gguf: one file for llama.cpp, with the tokenizer; by default a checkpoint.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="With --runtime gguf: f32, f16, bf16 or q8_0; by default as the source.",
            show_default=False,
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="Largest output file, such as 2GB; by default as the source.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT once the new one is complete.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rewrite a grouped checkpoint as a stock one, or as a GGUF file, that computes the same."""
    from gqkva_convert.runtimes.export import require_options
    from gqkva_convert.source.caches import cache_bytes

    require_options(runtime, dtype, max_shard_size)
    if runtime is not None:
        _export_gguf(model, out, architecture, dtype, overwrite, as_json)
        return
    from gqkva_convert.conversion.convert import write
    from gqkva_convert.conversion.export import prepare_export

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
    what = architecture or f"stock {model_type}"
    typer.echo(f"{conversion.target}: {what}, {variants}, {_sizes(result)}")


def _export_gguf(
    model: str, out: Path, architecture: str | None, dtype: str | None, overwrite: bool, as_json: bool
) -> None:
    from gqkva_convert.runtimes.gguf.write import prepare_gguf, write_gguf

    prepared = prepare_gguf(model, out, architecture=architecture, dtype=dtype)
    result = prepared.to_dict()
    with byte_progress(f"writing {out / prepared.file_name}", prepared.work_bytes) as progress:
        write_gguf(prepared, overwrite=overwrite, progress=progress)
    if as_json:
        print_json(result)
        return
    variants = " and ".join(dict.fromkeys(block.target.name for block in prepared.conversion.plan.blocks))
    tokenizer = "/".join(result["tokenizer"].values())
    typer.echo(
        f"{out / prepared.file_name}: {result['architecture']}, {variants}, {result['dtype']}, "
        f"tokenizer {tokenizer}, {_sizes(result)}"
    )
    for note in result["notes"]:
        typer.echo(f"note: {note}")


def _sizes(result: dict[str, Any]) -> str:
    """Parameters, weights and cache before and after."""
    parts = []
    for name, words, human in (
        ("parameters", "parameters {} -> {}", human_count),
        ("bytes", "weights {} -> {}", human_bytes),
        ("kv_cache_bytes_per_token", "KV cache {} -> {} a token", human_bytes),
    ):
        parts.append(words.format(*map(human, result[name])))
    return ", ".join(parts)
