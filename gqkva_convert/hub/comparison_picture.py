"""A metric over size: a point a model, with its interval; models made in one way joined by a line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gqkva_convert.hub.pictures import matplotlib_pyplot, save_picture

if TYPE_CHECKING:
    from gqkva_convert.hub.compare import Comparison, Row

# How much larger the largest is than the smallest before sizes are drawn by their ratio.
_RATIO = 6


def draw(comparison: Comparison, key: str, file: Path) -> Path:
    """Draw one metric.

    Args:
        comparison: The models.
        key: The metric.
        file: PNG file to write.
    """
    from gqkva_convert.hub.compare import SIZES

    plt = matplotlib_pyplot()
    rows = [row for row in comparison.rows if key in row.metrics]
    figure, axis = plt.subplots(figsize=(8.0, 5.0))
    series: dict[str | None, list[Row]] = {}
    for row in rows:
        series.setdefault(row.method, []).append(row)
    joined = sum(len(members) > 1 for method, members in series.items() if method is not None) > 1
    for number, (method, members) in enumerate(series.items()):
        is_line = joined and method is not None
        _draw_series(axis, comparison, key, members, f"C{number % 10}", method if is_line else None)
    sizes = [row.sizes[comparison.size] for row in rows]
    if sizes and min(sizes) > 0 and max(sizes) / min(sizes) > _RATIO:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_xlabel(SIZES[comparison.size])
    axis.set_ylabel(_plain(f"{key} ({comparison.better[key]} is better)"))
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    if joined:
        axis.legend(fontsize=8, frameon=False)
    return save_picture(figure, file)


def _draw_series(
    axis: object, comparison: Comparison, key: str, rows: list[Row], colour: str, label: str | None
) -> None:
    values = [row.metrics[key] for row in rows]
    sizes = [row.sizes[comparison.size] for row in rows]
    middles = [value.value for value in values]
    spread = [
        [max(0.0, value.value - value.interval[0]) if value.interval else 0.0 for value in values],
        [max(0.0, value.interval[1] - value.value) if value.interval else 0.0 for value in values],
    ]
    style = {"marker": "o", "color": colour, "capsize": 2, "elinewidth": 1, "markersize": 5}
    axis.errorbar(  # type: ignore[attr-defined]
        sizes, middles, yerr=spread, linestyle="-" if label else "none", label=label, **style
    )
    if label is None:
        for row, size, middle in zip(rows, sizes, middles, strict=True):
            axis.annotate(  # type: ignore[attr-defined]
                _plain(row.name), (size, middle), xytext=(5, 4), textcoords="offset points", fontsize=8
            )


def _plain(text: str) -> str:
    """Text that is no formula to matplotlib."""
    return text.replace("$", r"\$")
