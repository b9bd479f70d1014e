"""`gqkva evaluate`."""

from __future__ import annotations

from typing import Any

import typer

import gqkva_convert
from gqkva_convert.cli.output import print_json, print_table, stage_progress
from gqkva_convert.data.names import short_name


def evaluate_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Measure how well a model answers, alone or against the one it was made from."""
    with stage_progress() as stages:
        results = gqkva_convert.evaluate(**arguments, stages=stages)
    if as_json:
        print_json(results)
        return
    for result in results:
        print_result(result)


def print_result(result: dict[str, Any]) -> None:
    """Print one measurement as a table."""
    has_other = result["against"] is not None
    columns, rows = ["metric", ">model", "95 %"], []
    if has_other:
        columns += [f">{short_name(result['against'])}", "95 %", ">difference", "95 %"]
    part = f", {result['split']}" if result["split"] else ""
    title = f"{result['task']} on {short_name(result['data'])}{part}: {result['samples']:,} {result['unit']}"
    for metric in result["metrics"]:
        cells = [metric["metric"], _number(metric["value"]), _interval(metric["interval"])]
        if has_other:
            for name in ("against", "difference"):
                cells += [_number(metric[name]), _interval(metric[f"{name}_interval"])]
        rows.append(cells)
    print_table(title, columns, rows)
    chosen = {name: value for name, value in result["settings"].items() if value is not None}
    typer.echo(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in chosen.items()))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1 else f"{value:.3f}"


def _interval(bounds: list[float] | None) -> str:
    return "-" if bounds is None else f"{_number(bounds[0])} to {_number(bounds[1])}"
