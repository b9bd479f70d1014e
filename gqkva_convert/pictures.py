"""Plots as files: matplotlib without a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """Matplotlib's pyplot, drawing into files alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_picture(figure: Any, file: Path) -> Path:
    """Write a figure as a PNG, whatever the file is called, and let go of it."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(file, dpi=150, format="png")
    pyplot().close(figure)
    return file
