"""Plots as files: matplotlib without a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """Return matplotlib's pyplot, with a backend that draws to files alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_plot(figure: Any, file: Path) -> Path:
    """Write a figure as a PNG, whatever the file's ending, and close it."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(file, dpi=150, format="png")
    pyplot().close(figure)
    return file
