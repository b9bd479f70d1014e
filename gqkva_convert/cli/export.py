"""`gqkva export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, stage_progress
from gqkva_convert.units import human_bytes, human_count


def export_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Rewrite a grouped checkpoint as a stock one, or as a GGUF file, that computes the same."""
    from gqkva_convert.records.report import read_report

    with stage_progress() as stages:
        out = gqkva_convert.export(**arguments, stages=stages)
    is_checkpoint = arguments.get("runtime") is None
    result = _checkpoint(arguments["model"], out) if is_checkpoint else _gguf(out)
    if as_json:
        print_json(result)
    elif is_checkpoint:
        what = arguments.get("architecture") or f"stock {result['model_type']}"
        typer.echo(f"{out}: {what}, {_variants(read_report(out).plan)}, {_sizes(result)}")
    else:
        tokenizer, variants = "/".join(result["tokenizer"].values()), _variants(result["plan"])
        typer.echo(
            f"{out / result['file']}: {result['architecture']}, {variants}, {result['dtype']}, "
            f"tokenizer {tokenizer}, {_sizes(result)}"
        )
        for note in result["notes"]:
            typer.echo(f"note: {note}")


def _checkpoint(model: str, out: Path) -> dict[str, Any]:
    """Return sizes of a checkpoint before and after."""
    from gqkva_convert.checkpoint.hub import locate

    before, after = gqkva_convert.inspect(locate(model).folder), gqkva_convert.inspect(out)
    return {
        "folder": str(out),
        "model_type": after["model_type"],
        "parameters": [before["parameters"]["total"], after["parameters"]["total"]],
        **{name: [before[name], after[name]] for name in ("bytes", "kv_cache_bytes_per_token")},
    }


def _gguf(out: Path) -> dict[str, Any]:
    """Return what the report of a GGUF file says."""
    from gqkva_convert.checkpoint.jsonfile import read_json
    from gqkva_convert.checkpoint.sidecars import GGUF_REPORT

    report = read_json(out / GGUF_REPORT)
    return {"folder": str(out), "file": next(iter(report["files"])), **report}


def _variants(plan: dict[str, Any]) -> str:
    """Return the names of an export's layouts."""
    from gqkva_convert.plans.plan import Plan

    return " and ".join(dict.fromkeys(block.target.name for block in Plan.from_dict(plan).blocks))


def _sizes(result: dict[str, Any]) -> str:
    """Describe parameters, weights and cache before and after."""
    parameters = " -> ".join(map(human_count, result["parameters"]))
    weights = " -> ".join(map(human_bytes, result["bytes"]))
    cache = " -> ".join(map(human_bytes, result["kv_cache_bytes_per_token"]))
    return f"parameters {parameters}, weights {weights}, KV cache {cache} a token"
