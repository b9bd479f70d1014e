"""`gqkva convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gqkva_convert.cli.options import Blocks, Json, KeyValueHeads, Model, QueryHeads, Revision
from gqkva_convert.cli.output import (
    byte_progress,
    human_bytes,
    human_count,
    make_table,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from gqkva_convert.conversion.convert import Conversion


def convert_command(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Argument(
            help="Folder to write; by default MODEL's name and the variant, here.", show_default=False
        ),
    ] = None,
    gkv: KeyValueHeads = None,
    gq: QueryHeads = None,
    blocks: Blocks = None,
    merge: Annotated[
        str,
        typer.Option(
            help="How heads become one: closed-form, closed-form-weights, aligned, aligned-rescaled, mean, "
            "first, norm-weighted or random."
        ),
    ] = "closed-form",
    grouping: Annotated[str, typer.Option(help="Which heads become one: neighbour or random.")] = "neighbour",
    seed: Annotated[int, typer.Option(help="Seed of everything drawn at random.")] = 0,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16, float16 or float64; by default each tensor keeps its own.",
            show_default=False,
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="Largest output file, such as 2GB; by default as the source.", show_default=False),
    ] = None,
    revision: Revision = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT once the new checkpoint is complete.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Merge a checkpoint's heads and write the result, as a stock checkpoint where one can hold it."""
    from gqkva_convert.conversion.convert import kept_shards, prepare, write

    conversion = prepare(
        model,
        out,
        gq=gq,
        gkv=gkv,
        blocks=blocks,
        merge=merge,
        grouping=grouping,
        seed=seed,
        dtype=dtype,
        max_shard_size=max_shard_size,
        revision=revision,
    )
    if dry_run:
        _show_plan(conversion, as_json)
        return
    try:
        with byte_progress(f"writing {conversion.target}", conversion.steps.nbytes) as progress:
            write(conversion, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt:
        kept = kept_shards(conversion.target)
        if kept:
            typer.echo(
                f"{kept} of {len(conversion.shards)} shards are complete and kept; "
                "run the same command again to go on from there",
                err=True,
            )
        raise
    if as_json:
        from gqkva_convert.conversion.report import read_report

        print_json({"folder": str(conversion.target), **read_report(conversion.target)})
    else:
        _show_result(conversion)


def _show_plan(conversion: Conversion, as_json: bool) -> None:
    data = conversion.to_dict()
    if as_json:
        print_json(data)
        return
    heads = make_table(
        f"{conversion.located.name} -> {conversion.target} (nothing written)",
        [
            ("attention", False),
            ("layers", True),
            ("from", False),
            ("to", False),
            ("groups of layer 0", False),
        ],
    )
    for kind in dict.fromkeys(block.kind for block in conversion.plan.blocks):
        blocks = [block for block in conversion.plan.blocks if block.kind == kind]
        first = blocks[0]
        groups = " ".join("+".join(map(str, group)) for group in first.groups("key"))
        heads.add_row(kind, str(len(blocks)), first.source.name, first.target.name, groups)
    print_table(heads)
    files = make_table(
        f"merge {conversion.plan.merge}, grouping {conversion.plan.grouping}, seed {conversion.plan.seed}",
        [
            ("file", False),
            ("tensors", True),
            ("copied", True),
            ("merged", True),
            ("other", True),
            ("size", True),
        ],
    )
    for shard in conversion.shards:
        kinds = [step.operation for step in shard.steps]
        copied, merged = kinds.count("copy"), kinds.count("merge")
        files.add_row(
            shard.file_name,
            str(len(kinds)),
            str(copied),
            str(merged),
            str(len(kinds) - copied - merged),
            human_bytes(shard.nbytes),
        )
    print_table(files)
    for name, reason in conversion.steps.dropped.items():
        typer.echo(f"dropped {name}: {reason}")
    typer.echo(_sizes(data))


def _show_result(conversion: Conversion) -> None:
    changed = [block for block in conversion.plan.blocks if block.target != block.source]
    first = (changed or conversion.plan.blocks)[0]
    typer.echo(
        f"{conversion.target}: {first.source.name} -> {first.target.name}, {_sizes(conversion.to_dict())}"
    )
    if not conversion.plan.is_native(conversion.model.family):
        typer.echo("load it with trust_remote_code=True, or with `import gqkva_convert` and without")


def _sizes(data: dict[str, Any]) -> str:
    before, after = data["source_parameters"], data["parameters"]
    return (
        f"parameters {human_count(before)} -> {human_count(after)} ({100 * (after / before - 1):+.1f} %), "
        f"weights {human_bytes(data['source_bytes'])} -> {human_bytes(data['bytes'])}"
    )
