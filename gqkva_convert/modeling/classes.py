"""Every grouped class by name, made when first asked for: ``classes.GqkvaBertModel``."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from gqkva_convert.modeling.bundle import BLOCK_CLASSES, modeling_text
from gqkva_convert.modeling.families import GROUPED_FAMILIES, GroupedFamily, grouped_name, stock_name

__all__ = ["config_class", "model_classes", "modeling_text"]

_models: dict[str, dict[str, type]] = {}


def class_named(name: str, fallback: str) -> Any:
    """Return the stock or grouped class of a name.

    Args:
        name: As a configuration names it.
        fallback: Stock class to return where transformers has none of that name.
    """
    import transformers

    home = transformers if stock_name(name) == name else sys.modules[__name__]
    return getattr(home, name, None) or getattr(transformers, fallback)


def config_class(family: GroupedFamily) -> type:
    """Return the grouped configuration class of a family; loads no model."""
    from gqkva_convert.modeling.models import define_config

    name = grouped_name(family.config)
    if name not in globals():
        globals()[name] = define_config(family, __name__)
    found: type = globals()[name]
    return found


def model_classes(family: GroupedFamily) -> dict[str, type]:
    """Return the grouped model classes of a family by name."""
    if family.model_type not in _models:
        from gqkva_convert.modeling.models import define_models

        made = define_models(family, __name__, config_class(family), _block_class(family))
        _models[family.model_type] = made
        globals().update(made)
    return _models[family.model_type]


def _block_class(family: GroupedFamily) -> type | None:
    place = BLOCK_CLASSES.get(family.model_type)
    if place is None:
        return None
    found: type = getattr(importlib.import_module(place[0]), place[1])
    return found


def __getattr__(name: str) -> Any:
    for family in GROUPED_FAMILIES.values():
        if name == grouped_name(family.config):
            return config_class(family)
        if any(name in map(grouped_name, names) for names in family.auto_classes.values()):
            return model_classes(family)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
