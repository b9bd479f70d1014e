"""Plot a metric over size, a point per model with its interval; a line joins models made the same way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert.comparison.reading import SIZES
from gqkva_convert.plots import pyplot, save_plot

if TYPE_CHECKING:
    from gqkva_convert.comparison.rows import Comparison, Row

# How much larger the largest is than the smallest before sizes are drawn by their ratio.
_RATIO = 6
# Ten colours come around again with another of these.
_MARKERS = "os^D"


def draw(comparison: Comparison, key: str, file: Path) -> Path:
    """Draw one metric."""
    plt = pyplot()
    rows = [row for row in comparison.rows if key in row.metrics]
    figure, axis = plt.subplots(figsize=(9.0, 5.5))
    series: dict[str | None, list[Row]] = {}
    for row in rows:
        series.setdefault(row.method, []).append(row)
    joined = sum(len(members) > 1 for method, members in series.items() if method is not None) > 1
    for number, (method, members) in enumerate(series.items()):
        style = {"color": f"C{number % 10}", "marker": _MARKERS[number // 10 % len(_MARKERS)]}
        _draw_series(axis, comparison, key, members, style, method if joined else None)
    sizes = [row.sizes[comparison.size] for row in rows]
    if sizes and min(sizes) > 0 and max(sizes) / min(sizes) > _RATIO:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_xlabel(SIZES[comparison.size])
    axis.set_ylabel(_plain(f"{key}\n({comparison.better[key]} is better)"))
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    if joined:
        # Beside the points, where many methods would cover them.
        axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save_plot(figure, file)


def _draw_series(
    axis: Any, comparison: Comparison, key: str, rows: list[Row], style: dict[str, str], label: str | None
) -> None:
    values = [row.metrics[key] for row in rows]
    sizes = [row.sizes[comparison.size] for row in rows]
    middles = [value.value for value in values]
    spread = [
        [max(0.0, value.value - value.interval[0]) if value.interval else 0.0 for value in values],
        [max(0.0, value.interval[1] - value.value) if value.interval else 0.0 for value in values],
    ]
    bars = {"capsize": 2, "elinewidth": 1, "markersize": 5, "linestyle": "-" if label else "none"}
    axis.errorbar(sizes, middles, yerr=spread, label=label, **bars, **style)
    if label is None:
        for row, size, middle in zip(rows, sizes, middles, strict=True):
            axis.annotate(
                _plain(row.name), (size, middle), xytext=(5, 4), textcoords="offset points", fontsize=8
            )


def _plain(text: str) -> str:
    """Escape text so that matplotlib does not read formulas in it."""
    return text.replace("$", r"\$")
