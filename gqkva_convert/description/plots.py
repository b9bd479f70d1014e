"""Plots of a converted model: its heads, its size, its quality beside the original's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.sidecars import BENCH_PICTURE, PICTURES
from gqkva_convert.plans.plan import BlockPlan
from gqkva_convert.plots import pyplot, save_plot
from gqkva_convert.records.evaluation import Evaluation, Score

HEADS, SIZES, ERRORS, QUALITY, LOSS = PICTURES
# What each file shows; the other model is what this one was measured beside.
CAPTIONS = {
    HEADS: "Attention heads by layer; those of one colour share a key and a value head.",
    SIZES: "What is left of the original's parameters and cache.",
    ERRORS: "What each attention block's output lost, on calibration data held out, as a share of it.",
    QUALITY: "This model and {other}, with 95 % intervals.",
    BENCH_PICTURE: "Speed and cache, this model and {other}.",
    LOSS: "Loss over tokens of training.",
}
# Inches; readable on a phone, where a page is as wide as the plot.
_WIDTH = 7.0
_ORIGINAL, _CONVERTED = "#8a8f98", "#1f6feb"
# Refinements as a reader knows them.
_STAGES = {"merged": "merged", "output": "output fitted", "layerwise": "block fitted"}


def caption(file: str, other: str) -> str:
    """Return the caption of a plot."""
    return CAPTIONS[file].format(other="the original" if other == "original" else other)


def draw_heads(blocks: tuple[BlockPlan, ...], file: Path) -> Path:
    """Draw a row per layer, a square per attention head, coloured by the stored key/value head it reads."""
    plt = pyplot()
    kinds = list(dict.fromkeys(block.kind for block in blocks))
    by_kind = {kind: [block for block in blocks if block.kind == kind] for kind in kinds}
    heights = [max(1.2, 0.22 * len(by_kind[kind]) + 0.9) for kind in kinds]
    figure, axes = plt.subplots(
        len(kinds), 1, figsize=(_WIDTH, sum(heights)), squeeze=False, height_ratios=heights
    )
    for kind, axis in zip(kinds, axes[:, 0], strict=True):
        _draw_kind(by_kind[kind], kind, axis)
    return save_plot(figure, file)


def _draw_kind(blocks: list[BlockPlan], kind: str, axis: Any) -> None:
    import numpy as np

    width = max(block.target.num_attention_heads for block in blocks)
    stored = np.full((len(blocks), width), np.nan)
    for row, block in enumerate(blocks):
        readers = [None] * block.target.num_attention_heads if block.order is None else block.order
        for place, key in enumerate(block.target.key):
            # Heads keep their places in the source, so that a group of distant heads shows as one.
            source = readers[place]
            stored[row, place if source is None or source >= width else source] = key
    axis.imshow(stored % 20, cmap="tab20", vmin=0, vmax=19, aspect="auto", interpolation="none")
    axis.set_xticks(np.arange(-0.5, width), minor=True)
    axis.set_yticks(np.arange(-0.5, len(blocks)), minor=True)
    axis.grid(which="minor", color="white", linewidth=1)
    axis.tick_params(which="minor", length=0)
    axis.set_xlabel("attention head of the source")
    axis.set_ylabel("layer")
    step = max(1, len(blocks) // 16)
    axis.set_yticks(range(0, len(blocks), step), [str(block.layer) for block in blocks[::step]])
    axis.set_title(f"{kind} attention: heads of one colour share a key and a value", fontsize=10)


def draw_sizes(sizes: Sequence[tuple[str, float, float]], file: Path) -> Path:
    """Draw the remaining parameters and cache as shares of the original's."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(_WIDTH, 0.5 * len(sizes) + 0.9))
    names = [name for name, _, _ in sizes][::-1]
    shares = [after / before for _, before, after in sizes][::-1]
    axis.barh(names, [1.0] * len(sizes), color=_ORIGINAL, alpha=0.35, label="original")
    axis.barh(names, shares, color=_CONVERTED, label="converted")
    for row, share in enumerate(shares):
        axis.text(min(share, 1) + 0.01, row, f"{share:.1%}", va="center", fontsize=9)
    axis.set_xlim(0, max(1.12, *shares))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.spines[["top", "right"]].set_visible(False)
    return save_plot(figure, file)


def draw_errors(errors: dict[str, dict[int, dict[str, float]]], file: Path) -> Path | None:
    """Draw errors over layers, a panel per kind of attention, a line per refinement; None without errors."""
    if not errors:
        return None
    plt = pyplot()
    figure, axes = plt.subplots(len(errors), 1, figsize=(_WIDTH, 2.4 * len(errors)), squeeze=False)
    for (kind, layers), axis in zip(errors.items(), axes[:, 0], strict=True):
        numbers = sorted(layers)
        for name in dict.fromkeys(name for layer in layers.values() for name in layer):
            values = [layers[number].get(name, float("nan")) for number in numbers]
            axis.plot(numbers, values, "o-", markersize=4, label=_STAGES.get(name, name))
        axis.set_title(f"{kind} attention: error of the block's output", fontsize=10, loc="left")
        axis.set_xlabel("layer")
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    return save_plot(figure, file)


def draw_quality(evaluation: Evaluation, other: str, file: Path) -> Path | None:
    """Draw a panel per metric with both models and their intervals; None without another model."""
    found: list[tuple[str, Score]] = [
        (result.data, metric)
        for result in evaluation.results
        for metric in result.metrics
        if metric.against is not None
    ]
    if not found:
        return None
    plt = pyplot()
    figure, axes = plt.subplots(len(found), 1, figsize=(_WIDTH, 0.95 * len(found) + 0.3), squeeze=False)
    for (data, metric), axis in zip(found, axes[:, 0], strict=True):
        assert metric.against is not None
        rows = (
            (metric.value, metric.interval, _CONVERTED),
            (metric.against, metric.against_interval, _ORIGINAL),
        )
        for row, (value, interval, colour) in enumerate(rows):
            if interval is not None:
                axis.plot(interval, [row, row], color=colour, linewidth=3, alpha=0.5, solid_capstyle="butt")
            axis.plot([value], [row], "o", color=colour)
        axis.set_yticks([0, 1], ["this model", other])
        axis.set_ylim(-0.6, 1.6)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        better = f", {metric.better} is better" if metric.better else ""
        axis.set_title(f"{metric.metric} on {Path(data).name}{better}", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
    return save_plot(figure, file)
