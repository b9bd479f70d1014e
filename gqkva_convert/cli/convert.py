"""`gqkva convert`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gqkva_convert.cli.options import (
    Blocks,
    Calibration,
    CalibrationLength,
    CalibrationSamples,
    Dtype,
    Grouping,
    Json,
    KeyValueBudget,
    KeyValueHeads,
    Merge,
    Model,
    QueryHeads,
    Refine,
    Revision,
    Seed,
)
from gqkva_convert.cli.output import (
    byte_progress,
    human_bytes,
    human_count,
    make_table,
    print_json,
    print_table,
    stage_progress,
)
from gqkva_convert.errors import LayoutError

if TYPE_CHECKING:
    from gqkva_convert.conversion.convert import Conversion
    from gqkva_convert.plans.plan import BlockPlan


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
    kv_budget: KeyValueBudget = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="A plan file that `gqkva plan` wrote, instead of what to plan.", show_default=False
        ),
    ] = None,
    blocks: Blocks = None,
    merge: Merge = None,
    grouping: Grouping = None,
    refine: Refine = None,
    calibration: Calibration = None,
    calibration_samples: CalibrationSamples = None,
    calibration_length: CalibrationLength = None,
    seed: Seed = None,
    dtype: Dtype = None,
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
    from gqkva_convert.plans.request import make_request

    request = None
    if plan is None:
        request = make_request(
            gq=gq,
            gkv=gkv,
            kv_budget=kv_budget,
            blocks=blocks,
            grouping=grouping,
            merge=merge,
            refine=refine,
            seed=seed,
            dtype=dtype,
            calibration=calibration,
            samples=calibration_samples,
            length=calibration_length,
        )
    elif any(
        choice is not None
        for choice in (
            *(gq, gkv, kv_budget, blocks, grouping, merge, refine, seed, dtype),
            *(calibration, calibration_samples, calibration_length),
        )
    ):
        raise LayoutError(
            f"--plan {plan} says everything itself; edit it instead of giving options beside it"
        )
    with stage_progress() as stages:
        conversion = prepare(
            model,
            out,
            request=request,
            plan=plan,
            max_shard_size=max_shard_size,
            revision=revision,
            stages=stages,
        )
    if dry_run:
        _show_plan(conversion, as_json)
        return
    try:
        with (
            stage_progress() as stages,
            byte_progress(f"writing {conversion.target}", conversion.steps.nbytes) as progress,
        ):
            write(conversion, overwrite=overwrite, progress=progress, stages=stages)
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
        from gqkva_convert.records.report import read_report

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
        groups = " ".join("+".join(map(str, group)) for group in blocks[0].groups("key"))
        before, after = _variants(blocks)
        heads.add_row(kind, str(len(blocks)), before, after, groups)
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
    blocks = conversion.plan.blocks
    merged = [block for block in blocks if block.target != block.source]
    before, after = _variants(merged or blocks)
    typer.echo(f"{conversion.target}: {before} -> {after}, {_sizes(conversion.to_dict())}")
    if merged and conversion.calibrated is None and conversion.plan.merge == "closed-form":
        typer.echo("merged from weights alone; --calibration DATA loses less (docs/quality.md)", err=True)
    if not conversion.plan.is_native(conversion.model.family):
        typer.echo("load it with trust_remote_code=True, or with `import gqkva_convert` and without")


def _variants(blocks: Sequence[BlockPlan]) -> tuple[str, str]:
    """What layers were and what they are; as many names as differ."""
    before = dict.fromkeys(block.source.name for block in blocks)
    after = dict.fromkeys(block.target.name for block in blocks)
    return " and ".join(before), " and ".join(after)


def _sizes(data: dict[str, Any]) -> str:
    before, after = data["source_parameters"], data["parameters"]
    return (
        f"parameters {human_count(before)} -> {human_count(after)} ({100 * (after / before - 1):+.1f} %), "
        f"weights {human_bytes(data['source_bytes'])} -> {human_bytes(data['bytes'])}"
    )
