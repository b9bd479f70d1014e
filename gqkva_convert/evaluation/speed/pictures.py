"""A picture of a measurement: speed and cache over the context, a line a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Value, what the axis says, and what it is divided by.
_PANELS = (
    ("decode_tokens_per_second", "decoding, tokens/s", 1.0),
    ("prefill_tokens_per_second", "prefill, tokens/s", 1.0),
    ("kv_cache_bytes", "KV cache, MB", 1e6),
)
_STYLES = {"original": ("--", "s"), "converted": ("-", "o")}


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw what was measured as a PNG.

    Args:
        result: As `bench` returns it.
        file: Where to write, whatever its ending.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in result["rows"] if row["skipped"] is None]
    panels = [panel for panel in _PANELS if any(row[panel[0]] for row in rows)] or list(_PANELS[:1])
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.4 * len(panels), 3.8), squeeze=False, layout="constrained"
    )
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    for axis, (value, title, unit) in zip(axes.flat, panels, strict=True):
        for model, (line, marker) in _STYLES.items():
            for batch in batches:
                points = sorted(
                    (row["context"], row[value] / unit)
                    for row in rows
                    if (row["model"], row["batch"]) == (model, batch) and row[value] is not None
                )
                if points:
                    axis.plot(
                        *zip(*points, strict=True),
                        linestyle=line,
                        marker=marker,
                        markersize=4,
                        color=f"C{batches.index(batch)}",
                        label=f"{model}, batch {batch}",
                    )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        contexts = sorted({row["context"] for row in rows})
        axis.set_xticks(contexts, [f"{context:,}" for context in contexts], fontsize=8)
        axis.minorticks_off()
        axis.set_xlabel("positions")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    if rows:
        axes.flat[0].legend(fontsize=8)
    figure.suptitle(
        f"{Path(result['model']).name}: {result['device']}, {result['dtype']}, {result['date']}", fontsize=11
    )
    figure.savefig(file, dpi=130, format="png")
    plt.close(figure)
