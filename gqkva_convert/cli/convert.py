"""`gqkva convert`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, print_table, stage_progress
from gqkva_convert.units import human_bytes, human_count

if TYPE_CHECKING:
    from gqkva_convert.plans.plan import BlockPlan
    from gqkva_convert.records.family_proof import FamilyProof
    from gqkva_convert.records.report import Report


def convert_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Merge a checkpoint's heads and write the result, as a stock checkpoint where one can hold it."""
    from gqkva_convert.records.report import read_report

    with stage_progress() as stages:
        made: Path | dict[str, Any] = gqkva_convert.convert(**arguments, stages=stages)
    if isinstance(made, Path):
        report = read_report(made)
        if as_json:
            print_json({"folder": str(made), **report.to_dict()})
        else:
            _show_result(made, report)
    elif as_json:
        print_json(made)
    else:
        _show_plan(made)


def _show_plan(data: dict[str, Any]) -> None:
    from gqkva_convert.checkpoint.dtypes import tensor_bytes
    from gqkva_convert.plans.plan import Plan

    plan = Plan.from_dict(data["plan"])
    heads = []
    for kind in dict.fromkeys(block.kind for block in plan.blocks):
        blocks = [block for block in plan.blocks if block.kind == kind]
        groups = " ".join("+".join(map(str, group)) for group in blocks[0].groups("key"))
        before, after = _variants(blocks)
        heads.append((kind, str(len(blocks)), before, after, groups))
    title = f"{data['source']} -> {data['target']} (nothing written)"
    print_table(title, ("attention", ">layers", "from", "to", "groups of layer 0"), heads)
    files = []
    for name, steps in data["shards"].items():
        kinds = [step["operation"] for step in steps]
        copied, merged = kinds.count("copy"), kinds.count("merge")
        nbytes = sum(tensor_bytes(step["dtype"], step["shape"]) for step in steps)
        others = len(kinds) - copied - merged
        files.append((name, *map(str, (len(kinds), copied, merged, others)), human_bytes(nbytes)))
    title = f"merge {plan.merge}, grouping {plan.grouping}, seed {plan.seed}"
    print_table(title, ("file", ">tensors", ">copied", ">merged", ">other", ">size"), files)
    for name, reason in data["dropped"].items():
        typer.echo(f"dropped {name}: {reason}")
    typer.echo(_sizes(data["source_parameters"], data["source_bytes"], data))
    if "family_proof" in data:
        from gqkva_convert.records.family_proof import FamilyProof

        _say_unlicensed(FamilyProof.model_validate(data["family_proof"]))


def _say_unlicensed(proof: FamilyProof | None) -> None:
    """Say why heads were merged by mean, where the model allows no other rule."""
    said = "" if proof is None else proof.unlicensed
    if said:
        typer.echo(f"merged by mean: other rules mix features, {said}", err=True)


def _show_result(out: Path, report: Report) -> None:
    from gqkva_convert.checkpoint.sidecars import INPUT_CODE, STALE_ADAPTER
    from gqkva_convert.plans.plan import Plan
    from gqkva_convert.source.config_keys import is_grouped

    plan, made = Plan.from_report(report), report.to_dict()
    source = made["source"]
    merged = [block for block in plan.blocks if block.target != block.source]
    before, after = _variants(merged or plan.blocks)
    typer.echo(f"{out}: {before} -> {after}, {_sizes(source['parameters'], source['bytes'], made)}")
    if merged and plan.calibration is None and plan.merge == "closed-form":
        typer.echo("merged from weights alone; --calibration DATA loses less (docs/quality.md)", err=True)
    for name, reason in report.files_left_behind.items():
        if reason in (INPUT_CODE, STALE_ADAPTER):
            typer.echo(f"left behind: {name}: {reason}", err=True)
    _say_unlicensed(report.family_proof)
    if is_grouped(report.config):
        typer.echo("load it with trust_remote_code=True, or with `import gqkva_convert` and without")


def _variants(blocks: Sequence[BlockPlan]) -> tuple[str, str]:
    """Return the variant names of blocks before and after, each once."""
    before = dict.fromkeys(block.source.name for block in blocks)
    after = dict.fromkeys(block.target.name for block in blocks)
    return " and ".join(before), " and ".join(after)


def _sizes(parameters: int, nbytes: int, made: dict[str, Any]) -> str:
    """Describe parameters and bytes of the source and of the output."""
    share = 100 * (made["parameters"] / parameters - 1)
    return (
        f"parameters {human_count(parameters)} -> {human_count(made['parameters'])} ({share:+.1f} %), "
        f"weights {human_bytes(nbytes)} -> {human_bytes(made['bytes'])}"
    )
