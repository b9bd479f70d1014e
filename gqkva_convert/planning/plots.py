"""Plots of a plan: similarity of heads and their groups, loss of each layer, trade-offs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gqkva_convert.grouping.evolution import Front
from gqkva_convert.heads import Place
from gqkva_convert.planning.findings import BlockFindings, Findings
from gqkva_convert.plots import pyplot, save_plot

# Inches; readable at 32 layers of 32 heads.
_SIDE = 2.6
_COLUMNS = 4


def draw_findings(findings: Findings, grouping: str, folder: Path) -> list[Path]:
    """Draw what planning found, one PNG per subject, and return the files written.

    Args:
        findings: What planning found.
        grouping: Name of the grouping, for titles.
        folder: Where to write.
    """
    for old in (*folder.glob("similarity-*.png"), folder / "losses.png", *folder.glob("front.*")):
        old.unlink(missing_ok=True)
    written = []
    for kind in dict.fromkeys(kind for kind, _ in findings.blocks):
        written.append(_draw_similarities(findings, kind, grouping, folder / f"similarity-{kind}.png"))
    known = {place: found for place, found in findings.blocks.items() if found.loss is not None}
    if known:
        written.append(_draw_losses(known, grouping, folder / "losses.png"))
    if findings.front is not None:
        written.append(_draw_front(findings.front, folder / "front.png"))
    return written


def _draw_similarities(findings: Findings, kind: str, grouping: str, file: Path) -> Path:
    """Draw a square per layer: similarity of every pair of heads, heads of a group outlined."""
    from matplotlib.patches import Rectangle

    layers = [layer for its_kind, layer in findings.blocks if its_kind == kind]
    columns = min(_COLUMNS, len(layers))
    rows = -(-len(layers) // columns)
    figure, axes = pyplot().subplots(
        rows,
        columns,
        figsize=(_SIDE * columns + 0.6, _SIDE * rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    image: Any = None
    for axis, layer in zip(axes.flat, layers, strict=False):
        matrix, groups = findings.blocks[kind, layer].similarity, findings.blocks[kind, layer].groups
        size = np.sqrt(np.maximum(np.diagonal(matrix), 1e-300))
        order = [head for group in groups for head in group]
        image = axis.imshow(
            (matrix / np.outer(size, size))[np.ix_(order, order)], vmin=0, vmax=1, cmap="viridis"
        )
        start = -0.5
        for group in groups:
            box = (start, start), len(group), len(group)
            axis.add_patch(Rectangle(*box, fill=False, edgecolor="white", linewidth=1.2))
            start += len(group)
        letters = 7 if len(order) <= 16 else 4.5
        axis.set_xticks(range(len(order)), order, fontsize=letters, rotation=90)
        axis.set_yticks(range(len(order)), order, fontsize=letters)
        axis.tick_params(length=0, pad=1)
        axis.set_title(f"layer {layer}", fontsize=9)
    for axis in axes.flat[len(layers) :]:
        axis.set_axis_off()
    figure.suptitle(f"{kind} attention: similarity of heads; groups of {grouping}", fontsize=11)
    figure.colorbar(image, ax=axes, shrink=min(1.0, 1.5 / rows), label="similarity")
    return save_plot(figure, file)


def _draw_losses(blocks: Mapping[Place, BlockFindings], grouping: str, file: Path) -> Path:
    """Draw a line per grouping: the closed form's loss in each layer, the chosen one on top."""
    places = list(blocks)
    figure, axis = pyplot().subplots(figsize=(max(5.0, 0.28 * len(places) + 2), 3.6), layout="constrained")
    names = dict.fromkeys(name for found in blocks.values() for name in found.method_losses)
    # Groupings are not compared in blocks whose queries are shared.
    lines = {
        name: [found.method_losses.get(name, np.nan) for found in blocks.values()]
        for name in names
        if name != grouping
    }
    for (name, losses), marker in zip(lines.items(), "s^vDPX", strict=False):
        style = {"marker": marker, "markersize": 4, "linewidth": 1.0, "linestyle": "--"}
        axis.plot(100 * np.array(losses), label=name, **style)
    chosen = np.array([found.loss for found in blocks.values()], float)
    axis.plot(100 * chosen, "ko-", label=f"{grouping} (chosen)")
    labels = [
        f"{layer}" if len({kind for kind, _ in places}) == 1 else f"{kind} {layer}" for kind, layer in places
    ]
    axis.set_xticks(range(len(places)), labels, fontsize=8, rotation=90 if len(places) > 12 else 0)
    axis.set_xlabel("layer")
    axis.set_ylabel("closed form loses, % of the block")
    highest = np.nanmax([*lines.values(), chosen])
    axis.set_ylim(0, None if highest > 1e-9 else 1)  # or rounding would look like a loss
    axis.grid(alpha=0.3)
    axis.legend()
    return save_plot(figure, file)


def _draw_front(front: Front, file: Path) -> Path:
    figure, axis = pyplot().subplots(figsize=(5.5, 3.8), layout="constrained")
    points = sorted(zip(front.heads, front.errors, strict=True))
    best, kept = np.inf, []
    for heads, error in points:
        if error < best:
            best = error
            kept.append((heads, error))
    axis.plot([heads for heads, _ in points], [error for _, error in points], ".", color="0.7", label="found")
    axis.plot([heads for heads, _ in kept], [error for _, error in kept], "o-", label="Pareto front")
    axis.set_xlabel("key/value heads of all layers")
    axis.set_ylabel("weight-sharing error")
    axis.grid(alpha=0.3)
    axis.legend()
    return save_plot(figure, file)
