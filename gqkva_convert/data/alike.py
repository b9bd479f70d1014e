"""Two models whose answers are compared: both must do the same task with the same tokens and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gqkva_convert.data.processors import has_other_tokens
from gqkva_convert.data.tasks import IMAGES, find_task
from gqkva_convert.errors import GqkvaError
from gqkva_convert.modeling.families import stock_type

ANSWERS = ("vocab_size", "num_labels")


def require_alike(
    named: tuple[str, str],
    models: tuple[Any, Any],
    folders: tuple[Path, Path],
    keys: Sequence[str],
    refuse: type[GqkvaError],
) -> None:
    """Refuse a model whose answers cannot be compared with another's.

    Args:
        named: What the refused model and the other one are called.
        models: Both.
        folders: Their folders.
        keys: Configuration keys that must be equal.
        refuse: The error to raise.
    """
    advice = "name the model it was made from"
    task, wanted = map(find_task, models)
    if task != wanted:
        kinds = [type(model).__name__ for model in models]
        raise refuse(f"{named[0]} is a {kinds[0]}, {named[1]} a {kinds[1]}: their tasks differ; {advice}")
    for key in keys:
        found, expected = (_value(model.config, key) for model in models)
        if found != expected:
            raise refuse(f"{named[0]} has {key} {found}, {named[1]} {expected}; {advice}")
    if task != IMAGES and has_other_tokens(*folders):
        raise refuse(f"{named[0]} has a tokenizer that numbers tokens otherwise; {advice}")


def _value(config: Any, key: str) -> Any:
    value = getattr(config, key, None)
    return stock_type(str(value)) if key == "model_type" else value
