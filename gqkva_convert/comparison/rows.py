"""A row a model: sizes and metrics of folders, repetitions of one experiment taken together."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gqkva_convert.comparison.reading import SIZES, Measured, model_folders, read_measured
from gqkva_convert.data.names import short_name
from gqkva_convert.errors import EvaluationError
from gqkva_convert.records.evaluation import Interval

# Folders whose names differ in this alone are repetitions of one experiment.
_SEED = re.compile(r"-seed\d+$")
_CONFIDENCE = 0.95
FORMAT_VERSION = 1
# What a comparison tells of a training run.
_TRAINING = {"tokens", "steps", "seconds", "seconds_per_step", "held_out_loss", "device", "date", "versions"}


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


def compare_models(
    folders: Iterable[str | Path], *, metrics: Sequence[str] = (), size: str = "parameters"
) -> Comparison:
    """Compare the models of folders; writes nothing."""
    if size not in SIZES:
        raise EvaluationError(f"no size {size!r}; choose one of {', '.join(SIZES)}")
    return _compared([read_measured(path) for path in model_folders(folders)], metrics, size)


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
    notes = [note for key in keys for note in [*_notes(found, key), *_interval_notes(rows, key)]]
    return Comparison(size, tuple(keys), better, tuple(rows), tuple(notes))


def _notes(found: list[Measured], key: str) -> list[str]:
    """Note differences between the measurements of a metric other than the model."""
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


def _interval_notes(rows: list[Row], key: str) -> list[str]:
    """Note intervals and repetitions that a reader could misunderstand."""
    counts = {row.name: len(row.metrics[key].repeats) for row in rows if key in row.metrics}
    notes = [
        f"{key}: {row.name} was measured in {counts.get(row.name, 0)} of {row.repeats} repetitions"
        for row in rows
        if 0 < counts.get(row.name, 0) < row.repeats
    ]
    if len({count > 1 for count in counts.values()}) > 1:
        notes.append(
            f"{key}: intervals are over samples where there is one repetition, over repetitions where there "
            "are several"
        )
    return notes


def _names(paths: list[Path]) -> dict[Path, str]:
    """Name each path by the shortest end of it that no other path has."""
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
    """Return the first metric of each data set."""
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
    training = {} if member.training is None else member.training.model_dump(include=_TRAINING)
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
    """Return the 95 % interval of the mean of repetitions (Student, 1908)."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    half = (
        float(t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    )
    return mean - half, mean + half
