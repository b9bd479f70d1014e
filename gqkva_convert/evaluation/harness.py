"""Tasks of lm-evaluation-harness (Gao et al., 2023), through its Python interface."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.tasks import CAUSAL, TO_TARGET
from gqkva_convert.errors import EvaluationError, first_line
from gqkva_convert.evaluation.metrics import Metric, mean
from gqkva_convert.evaluation.subject import Subject
from gqkva_convert.modeling.log_levels import quiet
from gqkva_convert.records.evaluation import HARNESS, HARNESS_TASK, Result, Score

_BATCH = 8
# Normal deviate of a 95 % interval.
_DEVIATE = 1.96


def run_tasks(subject: Subject, settings: dict[str, Any], circumstances: dict[str, Any]) -> list[Result]:
    """Run the tasks of the settings on every model.

    Returns:
        A result for each task or group.

    Raises:
        EvaluationError: The harness is missing, a task does not exist or cannot be run, or the model does
            not write text.
    """
    manager = require_tasks(subject)
    with quiet("lm_eval"), _without_bars():
        own, *other = (_run(subject, model, manager) for model in subject.models)
    names = [name for name in own["results"] if name in (*own["samples"], *own.get("groups", {}))]
    versions, shots = own["versions"], own["n-shot"]
    return [
        Result(
            task=HARNESS,
            task_id=HARNESS_TASK,
            data=name,
            split=None,
            samples=sum(len(samples) for samples in _samples(own, name).values()),
            unit="questions",
            metrics=_metrics(name, own, other[0] if other else None, subject.settings.seed),
            settings={"num_fewshot": shots.get(name), "task_version": versions.get(name), **settings},
            **circumstances,
        )
        for name in names
    ]


def require_tasks(subject: Subject) -> Any:
    """Return the harness's task manager; raise as `run_tasks` for tasks that cannot be run."""
    if subject.task not in (CAUSAL, TO_TARGET):
        raise EvaluationError(
            f"lm-evaluation-harness runs models that write text, and this is one for {subject.task}; "
            "measure it on --data"
        )
    with quiet("lm_eval"), _without_bars():
        return _manager(subject.settings.tasks)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the progress bars of the harness and of its data, except on a terminal."""
    import datasets

    if sys.stderr.isatty():
        yield
        return
    datasets.disable_progress_bars()
    with redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Temporarily set an attribute of a module."""
    earlier = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, earlier)


def _manager(tasks: Sequence[str]) -> Any:
    """Return a task manager, with the harness's own tasks only if one is requested by name."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise EvaluationError(
            f"--tasks needs lm-evaluation-harness ({first_line(error)}); pip install 'gqkva-convert[eval]'"
        ) from error
    files = [name for name in tasks if Path(name).suffix in (".yaml", ".yml")]
    for name in files:
        if not Path(name).is_file():
            raise EvaluationError(f"--tasks {name}: no such file")
    manager = TaskManager(include_defaults=len(files) < len(tasks))
    known = set(manager.all_tasks)
    for name in tasks:
        if name not in (*files, *known):
            raise EvaluationError(f"lm-evaluation-harness has no task {name!r}{_nearest(name, known)}")
    return manager


def _run(subject: Subject, model: Any, manager: Any) -> Any:
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    settings = subject.settings
    harness = HFLM(
        pretrained=model,
        tokenizer=load_processor(subject.folder, "AutoTokenizer"),
        backend="causal" if subject.task == CAUSAL else "seq2seq",
        batch_size=settings.batch_size or _BATCH,
        max_length=settings.length,
    )
    try:
        # It asks git about the folder that this runs in, and git complains where that is no repository.
        with _replaced(evaluator, "get_git_commit_hash", lambda: None):
            return evaluator.simple_evaluate(
                harness,
                tasks=list(settings.tasks),
                num_fewshot=settings.num_fewshot,
                limit=settings.samples,
                bootstrap_iters=0,
                log_samples=True,
                task_manager=manager,
                random_seed=settings.seed,
                numpy_random_seed=settings.seed,
                torch_random_seed=settings.seed,
                fewshot_random_seed=settings.seed,
            )
    except Exception as error:  # tasks are other people's code and data
        raise EvaluationError(
            f"--tasks {','.join(settings.tasks)}: {type(error).__name__}: {first_line(error)}"
        ) from error


def _nearest(name: str, known: set[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else "; give the name of one, or a YAML file"


def _samples(answers: Any, name: str) -> dict[str, list[Any]]:
    """Return the samples of a task, or of every task of a group, by task."""
    if name in answers["samples"]:
        return {name: answers["samples"][name]}
    found: dict[str, list[Any]] = {}
    for part in answers.get("group_subtasks", {}).get(name, []):
        found |= _samples(answers, part)
    return found


def _metrics(name: str, own: Any, other: Any, seed: int) -> list[Score]:
    found = []
    for key, value in own["results"][name].items():
        metric, _, rule = key.partition(",")
        if not rule or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        better = _better(own, name, metric)
        shown = metric if rule == "none" else f"{metric} ({rule})"
        columns = _column(own, name, metric, rule, value)
        if columns is None:
            found.append(_reported(own, other, name, key, shown, better))
            continue
        theirs = None if other is None else _column(other, name, metric, rule, other["results"][name][key])
        paired = None if theirs is None else [theirs]
        found.append(Metric(shown, better, mean, [columns], paired).score(seed))
    return found


def _better(answers: Any, name: str, metric: str) -> Literal["lower", "higher"]:
    higher = answers.get("higher_is_better", {}).get(name, {}).get(metric)
    return "lower" if higher is False else "higher"


def _column(answers: Any, name: str, metric: str, rule: str, reported: float) -> Any:
    """Return a metric's value per sample if the harness reports their mean; else None."""
    values = [
        sample[metric]
        for samples in _samples(answers, name).values()
        for sample in sorted(samples, key=lambda each: int(each["doc_id"]))
        if sample.get("filter", "none") == rule and metric in sample
    ]
    if not values or not all(isinstance(value, (bool, int, float, np.number)) for value in values):
        return None
    column = np.asarray(values, dtype=np.float64)
    return column if math.isclose(float(column.mean()), float(reported), abs_tol=1e-9) else None


def _reported(
    own: Any, other: Any, name: str, key: str, shown: str, better: Literal["lower", "higher"]
) -> Score:
    """Take what the harness reports, with an interval of its standard error where it gives one.

    Raises:
        EvaluationError: It is not finite.
    """
    metric, _, rule = key.partition(",")

    def interval(answers: Any) -> tuple[float, float] | None:
        error = answers["results"][name].get(f"{metric}_stderr,{rule}")
        value = answers["results"][name][key]
        if not isinstance(error, (int, float)) or not math.isfinite(error):
            return None
        return value - _DEVIATE * error, value + _DEVIATE * error

    value = own["results"][name][key]
    theirs = None if other is None else other["results"][name][key]
    if not all(math.isfinite(number) for number in (value, theirs) if number is not None):
        raise EvaluationError(f"lm-evaluation-harness reports a {shown} of {name} that is not finite")
    return Score(
        metric=shown,
        value=value,
        interval=interval(own),
        against=theirs,
        against_interval=None if other is None else interval(other),
        difference=None if theirs is None else value - theirs,
        difference_interval=None,
        better=better,
    )
