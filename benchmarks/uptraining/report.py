"""One plot of all curves, and tables of curves and budgets."""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def report(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    curves, budgets = results.get("curves", {}), results.get("budget", {})
    drawn = {
        key: entry
        for key, entry in {**curves, **budgets}.items()
        if key.split("|")[1] == str(arguments.heads)
    }
    # Each seed measures on its own rows; an arm without a teacher takes the teacher's loss of another arm.
    teachers = {key.split("|")[2]: entry["teacher"] for key, entry in drawn.items() if entry["teacher"]}
    lacking = sorted({key.split("|")[2] for key in drawn} - teachers.keys())
    if lacking or not drawn:
        raise SystemExit(
            f"{arguments.json}: no finished run of seed {', '.join(lacking) or 'any'} has a teacher, "
            "whose loss all are compared with"
        )
    _print_curves({key: entry for key, entry in drawn.items() if key in curves}, teachers)
    _draw(drawn, teachers, arguments.out)
    if budgets:
        _print_budgets(budgets)


def _print_curves(found: dict[str, Any], teachers: dict[str, float]) -> None:
    print("| arm | seed | tokens before training | within 2 % after | last tokens | rise of the loss |")
    print("| --- | --- | --- | --- | --- | --- |")
    for key, entry in found.items():
        arm, _, seed = key.split("|")
        points, teacher = _points(entry), teachers[seed]
        reached = next((tokens for tokens, loss in points if loss <= 1.02 * teacher), None)
        shown = "not" if reached is None else f"{reached:,}"
        (first, _), (last, loss) = points[0], points[-1]
        print(f"| {arm} | {seed} | {first:,} | {shown} | {last:,} | {loss - teacher:+.3f} |")


def _print_budgets(found: dict[str, Any]) -> None:
    print("\n| how | KV heads | seeds | removed | rise | before training | within 2 % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    cells = defaultdict(list)
    for key, entry in found.items():
        arm, heads, seed = key.split("|")
        cells[arm, heads].append((seed, entry))
    for (arm, heads), entries in cells.items():
        shown = [
            f"{100 * statistics.mean(e['removed'] for _, e in entries):.2f} % ("
            + ", ".join(f"{100 * e['removed']:.2f}" for _, e in entries)
            + ")",
            ", ".join(f"{e['kept'] - e['teacher']:+.4f}" for _, e in entries),
            ", ".join(f"{e['curve'][0][1] - e['teacher']:+.4f}" for _, e in entries),
            f"{sum(e['kept'] <= 1.02 * e['teacher'] for _, e in entries)} of {len(entries)}",
        ]
        print(f"| {arm} | {heads} | {', '.join(seed for seed, _ in entries)} | {' | '.join(shown)} |")


def _draw(found: dict[str, Any], teachers: dict[str, float], out: Any) -> None:
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    arms = list(dict.fromkeys(key.split("|")[0] for key in found))
    labelled: set[str] = set()
    for key, entry in found.items():
        arm, _, seed = key.split("|")
        label = None if arm in labelled else arm
        labelled.add(arm)
        tokens, losses = zip(*_points(entry), strict=True)
        rises = [loss - teachers[seed] for loss in losses]
        axis.plot(tokens, rises, color=f"C{arms.index(arm)}", label=label, linewidth=1)
    axis.axhline(0.02 * statistics.mean(teachers.values()), color="gray", linestyle=":", label="within 2 %")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("tokens read, every pass of calibration and fits counted")
    axis.set_ylabel("rise of the held-out loss over the original's, nats per token")
    axis.legend(fontsize=8)
    figure.savefig(out, dpi=130)


def _points(entry: dict[str, Any]) -> list[tuple[int, float]]:
    """Return the tokens read, including those of the conversion, and the losses."""
    before = entry["calibration_tokens"] + entry["fit_tokens"]
    return [(before + tokens, loss) for tokens, loss in entry["curve"]]
