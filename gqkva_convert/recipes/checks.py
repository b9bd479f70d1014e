"""What can be known to be wrong with a step's options before anything runs, hours before its turn perhaps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.hub import BUILT_IN, locate
from gqkva_convert.errors import GqkvaError, RecipeError, TrainingError
from gqkva_convert.evaluation.settings import EvaluationSettings
from gqkva_convert.evaluation.speed.settings import BenchSettings, parse_counts
from gqkva_convert.hub.push import check_name, check_place
from gqkva_convert.planning.choose import request_plan
from gqkva_convert.plans.request import make_request
from gqkva_convert.recipes.commands import CommandLine
from gqkva_convert.recipes.schema import Step
from gqkva_convert.runtimes.export import require_options
from gqkva_convert.source.model import open_model
from gqkva_convert.steps.make import make_steps
from gqkva_convert.uptraining.settings import TrainingSettings, make_settings, read_recipe

# Options of `gqkva plan` and `gqkva convert` that say what to plan.
_WISHES = ("gq", "gkv", "kv_budget", "blocks", "grouping", "merge", "refine", "seed", "dtype", "calibration")


def check_options(step: Step) -> None:
    """Refuse options that the step's command would refuse whatever it reads.

    Raises:
        RecipeError: Names the step.
    """
    try:
        if step.command in ("uptrain", "pretrain"):
            make_settings(training_values(step.options))
        elif step.command == "teacher":
            _settings_of_file(step.options)
        elif step.command == "evaluate":
            asked = _given(EvaluationSettings, step.options)
            tasks = asked.pop("tasks", ())
            names = tasks.split(",") if isinstance(tasks, str) else tasks
            EvaluationSettings(**asked, tasks=tuple(names))
        elif step.command == "bench":
            asked = _given(BenchSettings, step.options)
            asked |= {
                name: parse_counts(f"--{name}", _with_commas(asked[name]))
                for name in ("context", "batch")
                if name in asked
            }
            BenchSettings(**asked)
        elif step.command == "export":
            options = (step.options.get(name) for name in ("runtime", "dtype", "max_shard_size"))
            require_options(*options)
        elif step.command == "push":
            check_name(str(step.options.get("repo_id", "")))
            check_place(step.options.get("revision"), bool(step.options.get("create_pr")))
    except GqkvaError as error:
        raise RecipeError(f"step {step.name}: {error}") from error


def _given(kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    """A step's options that are fields of settings and not left out."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in options.items() if name in names and value is not None}


def _with_commas(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def check_heads(line: CommandLine, written: Collection[Path]) -> None:
    """Refuse a plan or conversion whose numbers of heads do not fit its model, where that is here already.

    Args:
        line: The step.
        written: What steps before it write.

    Raises:
        RecipeError: Names the step.
    """
    values = line.values() if line.step.command in ("plan", "convert") else {}
    model = values.get("model")
    if model is None or values.get("plan") is not None:
        return
    if Path(model) in written or not (model == BUILT_IN or Path(model).is_dir()):
        return
    wishes = {name: values[name] for name in _WISHES}
    asked = {"samples": values["calibration_samples"], "length": values["calibration_length"]}
    try:
        source = open_model(locate(model).folder)
        make_steps(source, request_plan(source, make_request(**wishes, **asked)))
    except GqkvaError as error:
        raise RecipeError(f"step {line.step.name}: {error}") from error


def _settings_of_file(options: dict[str, Any]) -> dict[str, Any]:
    """What the file of settings says that a training step names; nothing where it names none.

    Raises:
        RecipeError: The file cannot be read.
    """
    if options.get("recipe") is None:
        return {}
    try:
        return read_recipe(Path(str(options["recipe"])))
    except TrainingError as error:
        raise RecipeError(f"{error}; paths begin where gqkva run is called") from error


def training_values(options: dict[str, Any]) -> dict[str, Any]:
    """Settings of a training step: its file's, its own, and those it gives with ``others``.

    Raises:
        RecipeError: The file cannot be read.
    """
    values = _settings_of_file(options)
    values |= {name: value for name, value in options.items() if name in TrainingSettings.model_fields}
    others = options.get("others") or {}
    pairs = others.items() if isinstance(others, dict) else (str(each).split("=", 1) for each in others)
    values |= {str(pair[0]).strip(): pair[1] for pair in pairs if len(pair) == 2}
    return {name: value for name, value in values.items() if value is not None}
