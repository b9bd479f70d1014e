"""`gqkva compare`: models side by side, from what was measured of each."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import replace_json
from gqkva_convert.checkpoint.sidecars import EVALUATION, REPORT
from gqkva_convert.conversion.inspect import inspect
from gqkva_convert.conversion.plan import Plan
from gqkva_convert.conversion.report import read_report
from gqkva_convert.errors import CheckpointError, EvaluationError, OutputError
from gqkva_convert.hub.measured import Interval, Result, Training, read_evaluation, read_training
from gqkva_convert.hub.names import short_name

SIZES = {
    "parameters": "parameters",
    "bytes": "bytes of weights",
    "kv-cache": "KV-cache bytes a token",
}
# Folders whose names differ in this alone are repetitions of one experiment.
_SEED = re.compile(r"-seed(\d+)$")
_CONFIDENCE = 0.95
FORMAT_VERSION = 1
# Behind a metric's name: the difference to the model that it was evaluated against, on the same samples.
DIFFERENCE = " minus the original's"


@dataclass(frozen=True)
class Measurement:
    """One metric of one folder.

    Attributes:
        value: The number.
        interval: Its 95 % interval over samples.
        better: ``lower`` or ``higher``.
        samples: How many there were.
        against: The model that a difference is to.
    """

    value: float
    interval: Interval | None
    better: str
    samples: int | None
    against: str | None = None


@dataclass(frozen=True)
class Measured:
    """One folder, and what is known of it.

    Attributes:
        folder: The folder.
        variant: Its attention.
        method: How it was converted, and whether it was trained afterwards; None for what is no conversion.
        sizes: By the names of `SIZES`.
        metrics: By metric and data.
        training: What its last training took; None where it was not trained.
    """

    folder: Path
    variant: str
    method: str | None
    sizes: dict[str, int]
    metrics: dict[str, Measurement]
    training: Training | None


@dataclass(frozen=True)
class Value:
    """A metric of one row: of one folder with its own interval, or the mean over repetitions."""

    value: float
    interval: Interval | None
    repeats: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One model of a comparison: a folder, or several that differ in their seed alone."""

    name: str
    variant: str
    method: str | None
    repeats: int
    sizes: dict[str, int]
    metrics: dict[str, Value]
    seconds_per_step: float | None
    tokens: int | None
    members: tuple[dict[str, Any], ...] = field(repr=False)


@dataclass(frozen=True)
class Comparison:
    """Rows, largest first, the metrics that they are compared by, and what makes them hard to compare."""

    size: str
    metrics: tuple[str, ...]
    better: dict[str, str]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **asdict(self)}


def compare(
    folders: Iterable[str | Path],
    *,
    metrics: Sequence[str] = (),
    size: str = "parameters",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Put models side by side: their sizes, and what `gqkva evaluate` measured of them.

    Folders whose names differ in ``-seed0``, ``-seed1`` ... at their end are repetitions: their row has the
    mean, with Student's 95 % interval over them.

    Args:
        folders: Checkpoint folders, or folders that hold some.
        metrics: Which metrics, as results name them, such as ``top-1 accuracy``, or ``top-1 accuracy minus
            the original's`` for the paired difference; one that was measured on several data sets is named
            ``METRIC on DATA``. None: the first of each data set.
        size: What pictures have along their axis: ``parameters``, ``bytes`` or ``kv-cache``.
        out: Folder to write comparison.json, comparison.md and a picture a metric to; None for none.

    Returns:
        JSON data: a row a model.

    Raises:
        EvaluationError: Nothing was measured, or not what is asked for.
        CheckpointError: A folder holds no model.
        OutputError: ``out`` cannot be written.
    """
    comparison = compare_models(folders, metrics=metrics, size=size)
    if out is not None:
        write(comparison, Path(out))
    return comparison.to_dict()


def compare_models(
    folders: Iterable[str | Path], *, metrics: Sequence[str] = (), size: str = "parameters"
) -> Comparison:
    """As `compare`, without writing."""
    if size not in SIZES:
        raise EvaluationError(f"no size {size!r}; choose one of {', '.join(SIZES)}")
    return _compared([_measured(path) for path in _models(folders)], metrics, size)


def _models(folders: Iterable[str | Path]) -> list[Path]:
    models: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder; give checkpoint folders, or folders of some")
        if (folder / "config.json").is_file():
            inside = [folder]
        else:
            inside = sorted(
                path.parent for path in folder.glob("*/config.json") if not path.parent.name.startswith(".")
            )
        if not inside:
            raise CheckpointError(f"{folder} is no checkpoint and holds none")
        models += [path for path in map(Path.resolve, inside) if path not in models]
    return models


def _measured(folder: Path) -> Measured:
    facts = inspect(str(folder))
    metrics: dict[str, Measurement] = {}
    evaluation = read_evaluation(folder)
    for data, result in () if evaluation is None else _by_data(folder, evaluation.results):
        for metric in result.metrics:
            better = metric.better or "higher"
            metrics[f"{metric.metric} on {data}"] = Measurement(
                metric.value, metric.interval, better, result.samples
            )
            if metric.difference is not None:
                metrics[f"{metric.metric}{DIFFERENCE} on {data}"] = Measurement(
                    metric.difference, metric.difference_interval, better, result.samples, result.against
                )
    cache = facts["kv_cache_bytes_per_token"] + facts["cross_cache_bytes_per_source_token"]
    sizes = {"parameters": facts["parameters"]["total"], "bytes": facts["bytes"], "kv-cache": cache}
    variant = " and ".join(dict.fromkeys(kind["variant"] for kind in facts["attention"]))
    training = read_training(folder)
    return Measured(folder, variant, _method(folder, training), sizes, metrics, training)


def _by_data(folder: Path, results: Sequence[Result]) -> list[tuple[str, Result]]:
    """Results by their data's name, and by what they differ in where the same data was measured twice.

    Raises:
        EvaluationError: Two results cannot be told apart.
    """
    by_name: dict[str, list[Result]] = {}
    for result in results:
        split = f" ({result.split})" if result.split else ""
        by_name.setdefault(f"{short_name(result.data)}{split}", []).append(result)
    named: dict[str, Result] = {}
    for name, same in by_name.items():
        facts = [{"samples": result.samples, **(result.settings or {})} for result in same]
        differing = [key for key in facts[0] if any(fact.get(key) != facts[0][key] for fact in facts)]
        for result, fact in zip(same, facts, strict=True):
            full = ", ".join([name, *(f"{key} {fact.get(key)}" for key in differing)])
            if full in named:
                raise EvaluationError(
                    f"{folder} was measured twice on what is called {full}; remove {EVALUATION} from it and "
                    "measure again, each on data of another name"
                )
            named[full] = result
    return list(named.items())


def _method(folder: Path, training: Training | None) -> str | None:
    """How a folder was converted; None for what is no conversion."""
    if not (folder / REPORT).is_file():
        return None
    plan = Plan.from_dict(read_report(folder)["plan"])
    words = [f"{plan.grouping} groups", plan.merge, *plan.refine]
    if training is not None:
        how = "distilled" if training.settings.teacher else "trained"
        words.append(f"{how} on {training.tokens:,} tokens")
    return ", ".join(words)


def _compared(found: list[Measured], wanted: Sequence[str], size: str) -> Comparison:
    if not any(each.metrics for each in found):
        raise EvaluationError("nothing was measured of these folders; run gqkva evaluate on each")
    known = dict.fromkeys(key for each in found for key in each.metrics)
    keys = [_key(name, list(known)) for name in wanted] or _first_of_each(list(known))
    better = {key: one.better for each in found for key, one in each.metrics.items() if key in keys}
    groups: dict[Path, list[Measured]] = {}
    for each in found:
        groups.setdefault(each.folder.with_name(_SEED.sub("", each.folder.name)), []).append(each)
    rows = [_row(name, groups[path], keys) for path, name in _names(list(groups)).items()]
    rows.sort(key=lambda row: (-row.sizes[size], row.name))
    notes = [note for key in keys for note in _notes(found, key)]
    return Comparison(size, tuple(keys), better, tuple(rows), tuple(notes))


def _notes(found: list[Measured], key: str) -> list[str]:
    """In what the measurements of a metric differ, but for the model."""
    measured = [each.metrics[key] for each in found if key in each.metrics]
    counts = {one.samples for one in measured if one.samples is not None}
    originals = {one.against for one in measured if one.against is not None}
    notes = []
    if len(counts) > 1:
        notes.append(f"{key}: measured on {' or '.join(map(str, sorted(counts)))} samples")
    if len(originals) > 1:
        names = sorted({short_name(str(name)) for name in originals})
        notes.append(f"{key}: measured against different originals, {' and '.join(names)}")
    return notes


def _names(paths: list[Path]) -> dict[Path, str]:
    """Each by the last part of its path, with as many before it as tell it from the others."""
    names = {}
    for path in paths:
        for count in range(1, len(path.parts) + 1):
            end = path.parts[-count:]
            if sum(other.parts[-count:] == end for other in paths) == 1:
                break
        names[path] = "/".join(end)
    return names


def _key(name: str, known: list[str]) -> str:
    fits = [key for key in known if key == name or key.partition(" on ")[0] == name]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise EvaluationError(f"{name} was measured on several data sets; name one of {', '.join(fits)}")
    raise EvaluationError(f"no metric {name!r} was measured; there are {', '.join(known)}")


def _first_of_each(known: list[str]) -> list[str]:
    """The first metric of each data set."""
    first: dict[str, str] = {}
    for key in known:
        first.setdefault(key.partition(" on ")[2], key)
    return list(first.values())


def _row(name: str, members: list[Measured], keys: list[str]) -> Row:
    sizes = members[0].sizes
    for member in members:
        if member.sizes != sizes:
            raise EvaluationError(
                f"{member.folder} and {members[0].folder} would be repetitions of one model by their names, "
                "but differ in size; rename one"
            )
    trained = [member.training for member in members if member.training is not None]
    steps = [training.seconds_per_step for training in trained if training.seconds_per_step is not None]
    return Row(
        name=name,
        variant=members[0].variant,
        method=members[0].method,
        repeats=len(members),
        sizes=sizes,
        metrics={key: value for key in keys if (value := _value(members, key)) is not None},
        seconds_per_step=statistics.median(steps) if steps else None,
        tokens=max((training.tokens for training in trained), default=None),
        members=tuple(_raw(member) for member in members),
    )


def _raw(member: Measured) -> dict[str, Any]:
    metrics = {key: {"value": one.value, "interval": one.interval} for key, one in member.metrics.items()}
    training = {} if member.training is None else member.training.model_dump(exclude={"settings"})
    return {"name": member.folder.name, "metrics": metrics, "training": training}


def _value(members: list[Measured], key: str) -> Value | None:
    measured = [member.metrics[key] for member in members if key in member.metrics]
    values = [one.value for one in measured]
    if not values:
        return None
    if len(values) == 1:
        return Value(values[0], measured[0].interval, tuple(values))
    return Value(statistics.fmean(values), student_interval(values), tuple(values))


def student_interval(values: Sequence[float]) -> Interval:
    """A 95 % interval of the mean of repetitions (Student, 1908)."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = (
        float(t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    )
    return mean - half, mean + half


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write a comparison as JSON, as a Markdown table and as a picture a metric.

    Raises:
        OutputError: The folder cannot be written.
    """
    from gqkva_convert.hub.comparison_picture import draw

    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_json(out / "comparison.json", comparison.to_dict())
        (out / "comparison.md").write_text(markdown(comparison), encoding="utf-8")
        pictures = [draw(comparison, key, out / f"{slug(key)}.png") for key in comparison.metrics]
    except OSError as error:
        raise OutputError(f"cannot write into {out}: {error.strerror or error}") from error
    return [out / "comparison.json", out / "comparison.md", *pictures]


def slug(key: str) -> str:
    """A metric's name as a file's."""
    return re.sub(r"[^a-z0-9.]+", "-", key.lower()).strip("-.")


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, numbers as text."""
    rows = comparison.rows
    cache = any(row.sizes["kv-cache"] for row in rows)
    steps = any(row.seconds_per_step is not None for row in rows)
    repeats = any(row.repeats > 1 for row in rows)
    headings = ["model", "attention", "parameters"]
    headings += ["KV bytes a token"] * cache + ["ms a step"] * steps + ["repeats"] * repeats
    headings += [heading for key in comparison.metrics for heading in (key, "95 %")]
    cells = []
    for row in rows:
        line = [row.name, row.variant, f"{row.sizes['parameters']:,}"]
        line += [f"{row.sizes['kv-cache']:,}"] * cache
        line += ["-" if row.seconds_per_step is None else f"{row.seconds_per_step * 1e3:,.1f}"] * steps
        line += [str(row.repeats)] * repeats
        for key in comparison.metrics:
            value = row.metrics.get(key)
            line.append("-" if value is None else f"{value.value:.4f}")
            interval = None if value is None else value.interval
            line.append("-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}")
        cells.append(line)
    return headings, cells


def markdown(comparison: Comparison) -> str:
    """The table as Markdown."""
    headings, cells = table(comparison)
    lines = ["| " + " | ".join(line) + " |" for line in (headings, ["---"] * len(headings), *cells)]
    return "\n".join([*lines, *(f"\n{note}" for note in comparison.notes)]) + "\n"
