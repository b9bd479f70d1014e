"""`gqkva pretrain`."""

from __future__ import annotations

from typing import Any

import gqkva_convert
from gqkva_convert.cli.output import training_progress
from gqkva_convert.cli.uptrain import show_result


def pretrain_command(arguments: dict[str, Any], as_json: bool) -> None:
    """Train a model with fresh weights from scratch; the engine of `uptrain`, without a teacher."""
    with training_progress() as watch:
        result = gqkva_convert.pretrain(**arguments, watch=watch)
    show_result(result, as_json)
