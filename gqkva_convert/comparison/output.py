"""A comparison as a table, as JSON, as Markdown and as pictures."""

from __future__ import annotations

import re
from pathlib import Path

from gqkva_convert.checkpoint.jsonfile import replace_json
from gqkva_convert.comparison.picture import draw
from gqkva_convert.comparison.rows import Comparison
from gqkva_convert.errors import OutputError


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write a comparison as JSON, as a Markdown table and as a picture a metric.

    Raises:
        OutputError: The folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_json(out / "comparison.json", comparison.to_dict())
        (out / "comparison.md").write_text(markdown(comparison), encoding="utf-8")
        pictures = [draw(comparison, key, out / f"{slug(key)}.png") for key in comparison.metrics]
    except OSError as error:
        raise OutputError(f"cannot write into {out}: {error.strerror or error}") from error
    return [out / "comparison.json", out / "comparison.md", *pictures]


def slug(key: str) -> str:
    """A metric's name as a file's."""
    return re.sub(r"[^\w.]+", "-", key.lower()).strip("-.")


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, numbers as text."""
    rows = comparison.rows
    cache = any(row.sizes["kv-cache"] for row in rows)
    steps = any(row.seconds_per_step is not None for row in rows)
    repeats = any(row.repeats > 1 for row in rows)
    headings = ["model", "attention", "parameters"]
    headings += ["KV bytes a token"] * cache + ["ms a step"] * steps + ["repeats"] * repeats
    headings += [heading for key in comparison.metrics for heading in (key, "95 %")]
    cells = []
    for row in rows:
        line = [row.name, row.variant, f"{row.sizes['parameters']:,}"]
        line += [f"{row.sizes['kv-cache']:,}"] * cache
        line += ["-" if row.seconds_per_step is None else f"{row.seconds_per_step * 1e3:,.1f}"] * steps
        line += [str(row.repeats)] * repeats
        for key in comparison.metrics:
            value = row.metrics.get(key)
            line.append("-" if value is None else f"{value.value:.4f}")
            interval = None if value is None else value.interval
            line.append("-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}")
        cells.append(line)
    return headings, cells


def markdown(comparison: Comparison) -> str:
    """The table as Markdown."""
    headings, cells = table(comparison)
    lines = ["| " + " | ".join(line) + " |" for line in (headings, ["---"] * len(headings), *cells)]
    return "\n".join([*lines, *(f"\n{note}" for note in comparison.notes)]) + "\n"
