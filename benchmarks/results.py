"""Raw numbers as Markdown: targets and measured values, tools side by side, every round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Raw = dict[str, Any]

TOOLS = {
    "copy": "`cp -r` (copy only)",
    "convert": "`gqkva convert --gkv 8`",
    "convert_mean": "`gqkva convert --gkv 8 --merge mean`",
    "load_pool_save": "transformers: load, pool, save",
    "mergekit": "mergekit lazy passthrough (copy only)",
}
PRODUCTS = "numpy: the default's products alone, float32"
ABSENT = "not run"


@dataclass(frozen=True)
class Target:
    """A promise that a run can break.

    Attributes:
        promise: What is measured.
        value: The measured number, or None if it was not measured.
        limit: Largest number that keeps the promise.
        unit: Its unit, with a leading space where one is wanted.
    """

    promise: str
    value: Callable[[Raw], float | None]
    limit: float
    unit: str


def _runs(raw: Raw, tool: str) -> list[Raw]:
    return [row for row in raw["rounds"] if row["tool"] == tool and row["exit_status"] == 0]


def _median(rows: Sequence[Raw], key: str) -> float | None:
    return median(row[key] for row in rows) if rows else None


def _mean_ratio(raw: Raw, tool: str, key: str = "seconds") -> float | None:
    """Return the ratio of `--merge mean` to a tool that does no more than it."""
    ours, theirs = _median(_runs(raw, "convert_mean"), key), _median(_runs(raw, tool), key)
    return None if ours is None or theirs is None else ours / theirs


def _beyond_copy(raw: Raw) -> float | None:
    """Return the default conversion's time beyond a copy, relative to numpy's products of its size."""
    ours, copy = (_median(_runs(raw, tool), "seconds") for tool in ("convert", "copy"))
    return None if ours is None or copy is None else (ours - copy) / _median(raw["products"], "seconds")


def _heavy(raw: Raw, command: str) -> float:
    return len(raw["heavy_imports"][command])


def _largest_rss(rows: Sequence[Raw]) -> float:
    return float(max(row["peak_rss_bytes"] for row in rows))


def _mebibytes(rows: Sequence[Raw]) -> float | None:
    return _largest_rss(rows) / 2**20 if rows else None


def _memory_growth(raw: Raw) -> float | None:
    runs = _runs(raw, "convert_mean")
    return _largest_rss(runs) / _largest_rss(raw["less"]) if runs else None


TARGETS = (
    Target("convert: time beyond `cp -r`, of numpy's products", _beyond_copy, 2, "x"),
    Target("convert: largest peak RSS", lambda raw: _mebibytes(_runs(raw, "convert")), 1536, " MiB"),
    Target("mean: time, of `cp -r`", lambda raw: _mean_ratio(raw, "copy"), 1.3, "x"),
    Target("mean: largest peak RSS", lambda raw: _mebibytes(_runs(raw, "convert_mean")), 512, " MiB"),
    Target("mean: time, of load, pool, save", lambda raw: _mean_ratio(raw, "load_pool_save"), 1 / 3, "x"),
    Target(
        "mean: peak RSS, of load, pool, save",
        lambda raw: _mean_ratio(raw, "load_pool_save", "peak_rss_bytes"),
        1 / 20,
        "x",
    ),
    Target("mean: time, of mergekit's copy", lambda raw: _mean_ratio(raw, "mergekit"), 1 / 2, "x"),
    Target("mean: peak RSS, of the smaller model's", _memory_growth, 1.25, "x"),
    Target("`--help`", lambda raw: _median(raw["startup"]["help"], "seconds"), 0.4, " s"),
    Target("`inspect`, larger model", lambda raw: _median(raw["startup"]["inspect"], "seconds"), 1.5, " s"),
    Target("plan of 70B: largest peak RSS", lambda raw: _largest_rss(raw["plan_70b"]) / 2**20, 512, " MiB"),
    Target("`--help`: heavy modules imported", lambda raw: _heavy(raw, "help"), 0, ""),
    Target("`inspect`: heavy modules imported", lambda raw: _heavy(raw, "inspect"), 0, ""),
)


def targets_table(raw: Raw) -> str:
    """Return a table of each promise, its limit and the measured value."""
    rows = []
    for target in TARGETS:
        value = target.value(raw)
        limit = f"at most {_shown(target.limit, target.unit)}" if target.limit else "none"
        if value is None:
            rows.append((target.promise, limit, ABSENT, ""))
        else:
            kept = "yes" if value <= target.limit else "**no**"
            rows.append((target.promise, limit, _shown(value, target.unit), kept))
    return _table(("promise", "target", "measured", "kept"), rows)


def _shown(value: float, unit: str) -> str:
    return f"{value:,.0f}{unit}" if unit in ("", " MiB") else f"{value:.3g}{unit}"


def tools_table(raw: Raw) -> str:
    """Return a table of the medians of every tool, and their ratios to a copy."""
    copy_seconds = _median(_runs(raw, "copy"), "seconds") or float("nan")
    rows = []
    for tool, label in TOOLS.items():
        runs = _runs(raw, tool)
        if not runs:
            failed = next((row for row in raw["rounds"] if row["tool"] == tool), None)
            note = ABSENT if failed is None else f"failed ({failed['exit_status']})"
            rows.append((label, note, "", "", "", "", "", ""))
            continue
        seconds = median(row["seconds"] for row in runs)
        rows.append(
            (
                label,
                f"{seconds:.2f}",
                f"{seconds / copy_seconds:.2f}",
                f"{median(row['cpu_seconds'] for row in runs):.1f}",
                f"{median(row['cpu_seconds'] / row['seconds'] for row in runs):.2f}",
                f"{median(row['peak_rss_bytes'] for row in runs) / 1e6:,.0f}",
                f"{median(row['peak_anonymous_bytes'] for row in runs) / 1e6:,.0f}",
                f"{runs[0]['output_bytes'] / 1e9:.2f}",
            )
        )
    products, cpu = (median(row[key] for row in raw["products"]) for key in ("seconds", "cpu_seconds"))
    row = (PRODUCTS, f"{products:.2f}", f"{products / copy_seconds:.2f}", f"{cpu:.1f}", "", "", "", "")
    heading = ("tool", "seconds", "x `cp -r`", "CPU, s", "cores busy")
    heading += ("peak RSS, MB", "anonymous, MB", "written, GB")
    return _table(heading, [*rows, row])


def rounds_table(raw: Raw) -> str:
    """Return a table of every timed run, in order."""
    shapes = raw["shapes"]
    rows = [
        (
            shape,
            str(row["round"]),
            row["tool"].removesuffix(" less"),
            f"{row['seconds']:.3f}" if row["exit_status"] == 0 else f"failed ({row['exit_status']})",
            f"{row['cpu_seconds']:.1f}",
            f"{row['peak_rss_bytes'] / 1e6:.1f}",
            f"{row['peak_anonymous_bytes'] / 1e6:.1f}",
            f"{row['warm_bytes_per_second'] / 1e9:.1f}",
            f"{row['load']:.1f}",
        )
        for shape, key in ((shapes["less"], "less"), (shapes["large"], "rounds"))
        for row in raw[key]
    ]
    heading = ("shape", "round", "tool", "seconds", "CPU, s", "peak RSS, MB", "anonymous, MB")
    heading += ("re-read, GB/s", "load before")
    return _table(heading, rows)


def short_runs_table(raw: Raw) -> str:
    """Return a table of every repetition of the commands that write nothing."""
    startup = raw["startup"]
    runs = {"--help": startup["help"], "inspect": startup["inspect"], "plan of 70B": raw["plan_70b"]}
    rows = [
        (
            name,
            " ".join(f"{row['seconds']:.3f}" for row in rows),
            f"{_largest_rss(rows) / 1e6:.1f}",
        )
        for name, rows in runs.items()
    ]
    return _table(("command", "seconds of each run", "largest peak RSS, MB"), rows)


def agreement(raw: Raw) -> str:
    """Return a sentence on whether the two converters wrote the same keys and values."""
    found = raw["merged_sha256"]
    if len(found) < 2:
        return "Only one converter finished, so their outputs were not compared."
    verdict = "the same" if len(set(found.values())) == 1 else "**not** the same"
    return (
        f"Key and value projections written by `--merge mean` and by transformers are {verdict} bytes "
        f"(SHA-256 {found['convert_mean'][:16]})."
    )


def tables(raw: Raw) -> str:
    """Return the tables that the terminal shows."""
    notes = agreement(raw)
    if not any(row["tool"] == "mergekit" for row in raw["rounds"]):
        notes += "\nmergekit was skipped: give --mergekit the Python of an environment that has it."
    if raw["shapes"]["large"] != "7b":
        notes += "\nTargets are for the 7B and 1B shapes; --small only shows that the script works."
    return "\n\n".join((targets_table(raw), tools_table(raw), notes))


def render(raw: Raw) -> str:
    """Return the section for the documentation."""
    facts = {"date": raw["date"], "seed": str(raw["seed"]), **raw["machine"], **raw["versions"]}
    shapes = raw["shapes"]
    note = (
        f"Shapes: {shapes['large']} for the tools, {shapes['less']} for memory growth with `--merge mean`. "
        "Medians over rounds; "
        "each tool is a whole process, its source in the page cache, the disk idle before it starts. Peak "
        "RSS includes memory-mapped file pages and is never below "
        f"{raw['floor_rss_bytes'] / 1e6:.0f} MB, the size of the process that starts the tools; anonymous "
        "memory is not backed by a file and is sampled every 20 ms. numpy's products are timed with "
        "the threads that it takes by itself, their CPU time with one."
    )
    return "\n\n".join(
        (
            "## Conversion cost",
            f"```\n{raw['command']}\n```",
            note,
            tables(raw),
            "### Every run",
            rounds_table(raw),
            short_runs_table(raw),
            "### Machine and versions",
            _table(("what", "value"), list(facts.items())) + "\n",
        )
    )


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = [heading, ["-" * width for width in widths], *rows]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)
