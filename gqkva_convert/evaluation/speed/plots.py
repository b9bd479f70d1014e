"""A plot of a measurement: speed and cache over the context, a line for each model and batch, or bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gqkva_convert.evaluation.speed.rows import CONVERTED, ORIGINAL, shown_names
from gqkva_convert.plots import pyplot, save_plot
from gqkva_convert.records.bench import Bench

# Value, what the axis says, and what it is divided by.
_PANELS = (
    ("decode_tokens_per_second", "decoding, tokens/s", 1.0),
    ("prefill_tokens_per_second", "prefill, tokens/s", 1.0),
    ("kv_cache_bytes", "KV cache, MB", 1e6),
)
_STYLES = {ORIGINAL: ("--", "s"), CONVERTED: ("-", "o")}


def draw(result: Bench, file: Path) -> None:
    """Draw what was measured as a PNG; over batches where there is one context."""
    names = shown_names(result.against)
    rows = [{**row.model_dump(), "name": names[row.model]} for row in result.rows if row.skipped is None]
    panels = [panel for panel in _PANELS if any(row[panel[0]] for row in rows)] or list(_PANELS[:1])
    across, by = ("context", "batch") if len({row["context"] for row in rows}) > 1 else ("batch", "context")
    figure, axes = pyplot().subplots(
        1, len(panels), figsize=(4.4 * len(panels), 3.8), squeeze=False, layout="constrained"
    )
    for axis, (value, title, unit) in zip(axes.flat, panels, strict=True):
        if len({row[across] for row in rows}) > 1:
            _draw_lines(axis, rows, value, unit, across, by)
            axis.set_xlabel("positions" if across == "context" else "batch")
        else:
            _draw_bars(axis, rows, value, unit)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    if axes.flat[0].get_legend_handles_labels()[0]:
        axes.flat[0].legend(fontsize=8)
    name = Path(result.model or "").name
    figure.suptitle(f"{name}: {result.device}, {result.dtype}, {result.date}", fontsize=11)
    save_plot(figure, file)


def _draw_bars(axis: Any, rows: list[dict[str, Any]], value: str, unit: float) -> None:
    """Draw a bar per model, for one context and one batch."""
    names = [f"{row['name']}\n{row['context']:,} x {row['batch']}" for row in rows]
    heights = [row[value] / unit for row in rows]
    for number, (name, height) in enumerate(zip(names, heights, strict=True)):
        axis.bar(name, height, width=0.5, color=f"C{number}")
        axis.annotate(f"{height:,.4g}", (name, height), ha="center", va="bottom", fontsize=8)
    axis.margins(y=0.12)


def _draw_lines(axis: Any, rows: list[dict[str, Any]], value: str, unit: float, across: str, by: str) -> None:
    """Draw a line for each model and value of ``by``, dashed for the original."""
    numbers = list(dict.fromkeys(row[by] for row in rows))
    drawn: list[float] = []
    for model, (line, marker) in _STYLES.items():
        for number in numbers:
            chosen = [row for row in rows if (row["model"], row[by]) == (model, number)]
            points = sorted((row[across], row[value] / unit) for row in chosen)
            if points:
                label = f"{chosen[0]['name']}, {by} {number:,}"
                style = {"linestyle": line, "marker": marker, "color": f"C{numbers.index(number)}"}
                axis.plot(*zip(*points, strict=True), markersize=4, label=label, **style)
                drawn += [height for _, height in points]
    places = sorted({row[across] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(places, [f"{place:,}" for place in places], fontsize=8)
    axis.minorticks_off()
    if drawn and max(drawn) > 10 * min(drawn):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
