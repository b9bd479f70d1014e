"""Checks of a step's options before anything runs, perhaps hours before its turn.

Each check is given a command's options by name and what steps before it write, and raises the error that the
command would.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.hub import BUILT_IN, locate
from gqkva_convert.evaluation import settings as evaluation
from gqkva_convert.evaluation.speed import settings as speed
from gqkva_convert.hub.push import check_name, check_place
from gqkva_convert.planning.choose import request_plan
from gqkva_convert.plans.request import given_wishes, make_request
from gqkva_convert.runtimes.export import require_options
from gqkva_convert.source.model import open_model
from gqkva_convert.steps.make import make_steps
from gqkva_convert.uptraining.settings import choose_settings

Values = Mapping[str, Any]


def check_request(values: Values, written: Collection[Path]) -> None:
    """Refuse options of a plan or conversion, and numbers of heads that do not fit a model that is here."""
    if values.get("plan") is not None:
        return
    request, model = make_request(**given_wishes(values)), values["model"]
    if Path(model) not in written and (model == BUILT_IN or Path(model).is_dir()):
        source = open_model(locate(model).folder)
        make_steps(source, request_plan(source, request))


def check_training(values: Values, written: Collection[Path]) -> None:
    """Refuse settings of a training run."""
    choose_settings(values["settings"], values)


def check_evaluation(values: Values, written: Collection[Path]) -> None:
    """Refuse settings of a measurement."""
    evaluation.choose_settings(None, values)


def check_bench(values: Values, written: Collection[Path]) -> None:
    """Refuse settings of a measurement of speed."""
    speed.settings_of(values)


def check_export(values: Values, written: Collection[Path]) -> None:
    """Refuse options of an export that do not go together."""
    require_options(values["runtime"], values["dtype"], values["max_shard_size"])


def check_push(values: Values, written: Collection[Path]) -> None:
    """Refuse a malformed repository id, and a revision beside a pull request."""
    check_name(values["repo_id"])
    check_place(values["revision"], values["create_pr"])
