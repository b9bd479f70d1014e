"""A comparison as a table, as JSON, as Markdown and as plots."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import replace_json
from gqkva_convert.comparison.plots import draw
from gqkva_convert.comparison.rows import Comparison
from gqkva_convert.errors import OutputError


def write(comparison: Comparison, out: Path) -> None:
    """Write a comparison as JSON, as a Markdown table and as a plot per metric.

    Raises:
        OutputError: The folder cannot be written.
    """
    data = comparison.to_dict()
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_json(out / "comparison.json", data)
        (out / "comparison.md").write_text(markdown(data), encoding="utf-8")
        for key in comparison.metrics:
            draw(comparison, key, out / f"{slug(key)}.png")
    except OSError as error:
        raise OutputError(f"cannot write into {out}: {error.strerror or error}") from error


def files(data: dict[str, Any], out: Path) -> list[Path]:
    """Return the files that `write` wrote of a comparison."""
    plots = [out / f"{slug(key)}.png" for key in data["metrics"]]
    return [out / "comparison.json", out / "comparison.md", *plots]


def slug(key: str) -> str:
    """Return a metric's name in the form of a file name."""
    return re.sub(r"[^\w.]+", "-", key.lower()).strip("-.")


def table(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells of a comparison's JSON data, numbers as text."""
    rows, metrics = data["rows"], data["metrics"]
    cache = any(row["sizes"]["kv-cache"] for row in rows)
    steps = any(row["seconds_per_step"] is not None for row in rows)
    repeats = any(row["repeats"] > 1 for row in rows)
    headings = ["model", "attention", "parameters"]
    headings += ["KV bytes a token"] * cache + ["ms a step"] * steps + ["repeats"] * repeats
    headings += [heading for key in metrics for heading in (key, "95 %")]
    cells = []
    for row in rows:
        line = [row["name"], row["variant"], f"{row['sizes']['parameters']:,}"]
        line += [f"{row['sizes']['kv-cache']:,}"] * cache
        seconds = row["seconds_per_step"]
        line += ["-" if seconds is None else f"{seconds * 1e3:,.1f}"] * steps
        line += [str(row["repeats"])] * repeats
        for key in metrics:
            value = row["metrics"].get(key)
            line.append("-" if value is None else f"{value['value']:.4f}")
            interval = None if value is None else value["interval"]
            line.append("-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}")
        cells.append(line)
    return headings, cells


def markdown(data: dict[str, Any]) -> str:
    """Return a comparison's JSON data as a Markdown table, with its notes below."""
    headings, cells = table(data)
    lines = ["| " + " | ".join(line) + " |" for line in (headings, ["---"] * len(headings), *cells)]
    return "\n".join([*lines, *(f"\n{note}" for note in data["notes"])]) + "\n"
