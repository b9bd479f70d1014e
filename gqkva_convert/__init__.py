"""Convert multi-head attention checkpoints to grouped attention.

Every command of `gqkva` is a thin wrapper over the function of the same name here, loaded when first
used: importing this package does not import torch. It does make transformers' Auto classes load grouped
models without remote code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gqkva_convert._version import __version__ as __version__
from gqkva_convert.modeling.registration import register_when_loaded

if TYPE_CHECKING:
    from gqkva_convert.calibration.data import DataSettings as DataSettings
    from gqkva_convert.comparison.compare import compare as compare
    from gqkva_convert.conversion.convert import convert as convert
    from gqkva_convert.conversion.init import init as init
    from gqkva_convert.conversion.inspect import inspect as inspect
    from gqkva_convert.conversion.verify import verify as verify
    from gqkva_convert.demo_model.demo import demo as demo
    from gqkva_convert.description.report import report as report
    from gqkva_convert.errors import GqkvaError as GqkvaError
    from gqkva_convert.evaluation.evaluate import evaluate as evaluate
    from gqkva_convert.evaluation.settings import EvaluationSettings as EvaluationSettings
    from gqkva_convert.evaluation.speed.bench import bench as bench
    from gqkva_convert.heads import HeadLayout as HeadLayout
    from gqkva_convert.hub.push import push as push
    from gqkva_convert.planning.command import plan as plan
    from gqkva_convert.plans.request import Request as Request
    from gqkva_convert.recipes.run import run as run
    from gqkva_convert.runtimes.export import export as export
    from gqkva_convert.uptraining.objectives.precompute import teacher as teacher
    from gqkva_convert.uptraining.settings import TrainingSettings as TrainingSettings
    from gqkva_convert.uptraining.uptrain import pretrain as pretrain
    from gqkva_convert.uptraining.uptrain import uptrain as uptrain

# Public names and their modules; commands first, in the order of the command line.
_PUBLIC = {
    "inspect": "gqkva_convert.conversion.inspect",
    "plan": "gqkva_convert.planning.command",
    "convert": "gqkva_convert.conversion.convert",
    "evaluate": "gqkva_convert.evaluation.evaluate",
    "uptrain": "gqkva_convert.uptraining.uptrain",
    "teacher": "gqkva_convert.uptraining.objectives.precompute",
    "bench": "gqkva_convert.evaluation.speed.bench",
    "export": "gqkva_convert.runtimes.export",
    "init": "gqkva_convert.conversion.init",
    "pretrain": "gqkva_convert.uptraining.uptrain",
    "verify": "gqkva_convert.conversion.verify",
    "run": "gqkva_convert.recipes.run",
    "report": "gqkva_convert.description.report",
    "compare": "gqkva_convert.comparison.compare",
    "push": "gqkva_convert.hub.push",
    "demo": "gqkva_convert.demo_model.demo",
    "DataSettings": "gqkva_convert.calibration.data",
    "EvaluationSettings": "gqkva_convert.evaluation.settings",
    "GqkvaError": "gqkva_convert.errors",
    "HeadLayout": "gqkva_convert.heads",
    "Request": "gqkva_convert.plans.request",
    "TrainingSettings": "gqkva_convert.uptraining.settings",
}
COMMANDS = tuple(name for name in _PUBLIC if name.islower())

__all__ = list(_PUBLIC)


if not TYPE_CHECKING:  # to a type checker a module with __getattr__ has every name

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'gqkva_convert' has no attribute {name!r}")
        return getattr(importlib.import_module(_PUBLIC[name]), name)


register_when_loaded()
