"""Facts about measured folders: sizes, measurements and how they were made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gqkva_convert.checkpoint.sidecars import EVALUATION, REPORT
from gqkva_convert.conversion.inspect import inspect
from gqkva_convert.data.names import short_name
from gqkva_convert.errors import CheckpointError, EvaluationError
from gqkva_convert.plans.plan import Plan
from gqkva_convert.records.evaluation import Interval, Result, read_evaluation
from gqkva_convert.records.report import read_report, read_training
from gqkva_convert.records.training import Training

SIZES = {
    "parameters": "parameters",
    "bytes": "bytes of weights",
    "kv-cache": "KV-cache bytes a token",
}
# Behind a metric's name: the difference to the model that it was evaluated against, on the same samples.
DIFFERENCE = " minus the original's"


@dataclass(frozen=True)
class Measurement:
    """One metric of one folder.

    Attributes:
        interval: Its 95 % interval over samples.
        better: ``lower`` or ``higher``.
        against: The model that a difference is to.
    """

    value: float
    interval: Interval | None
    better: str
    samples: int | None
    against: str | None = None


@dataclass(frozen=True)
class Measured:
    """Facts about one folder.

    Attributes:
        method: Method of conversion and training; None for a model that was not converted.
        sizes: By the names of `SIZES`.
        metrics: By metric and data.
        training: Its last training; None where it was not trained.
    """

    folder: Path
    variant: str
    method: str | None
    sizes: dict[str, int]
    metrics: dict[str, Measurement]
    training: Training | None


def model_folders(folders: Iterable[str | Path]) -> list[Path]:
    """Return the given folders that are checkpoints, and the checkpoints inside the others.

    Raises:
        CheckpointError: One of them is none and holds none.
    """
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


def read_measured(folder: Path) -> Measured:
    """Read the facts about one folder.

    Raises:
        CheckpointError: It holds no model, or a file in it is damaged.
        EvaluationError: Two of its results cannot be told apart.
    """
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
    """Name results by their data, and by the settings that differ if data was measured more than once.

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
    """Describe how a folder was converted and trained; None for an unconverted model."""
    if not (folder / REPORT).is_file():
        return None
    plan = Plan.from_report(read_report(folder))
    words = [f"{plan.grouping} groups", plan.merge, *plan.refine]
    if training is not None:
        how = "distilled" if training.settings.get("teacher") else "trained"
        words.append(f"{how} on {training.tokens:,} tokens")
    return ", ".join(words)
