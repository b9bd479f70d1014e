"""Makes grouped models known to transformers' Auto classes, without importing transformers by itself."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gqkva_convert.modeling.families import GroupedFamily

# Loaded by the first use of any Auto class.
_AUTO = "transformers.models.auto.configuration_auto"


def register_when_loaded() -> None:
    """Register now if transformers' Auto classes are loaded, and otherwise as soon as they are."""
    if _AUTO in sys.modules:
        register()
    elif not any(isinstance(finder, _AutoFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoFinder())


def register() -> None:
    """Give every grouped family to transformers' Auto classes.

    The model classes of a family follow when its first configuration is made, which an Auto class does before
    it looks for the model: loading 25 modelling files for one model would take seconds.
    """
    from transformers import AutoConfig

    from gqkva_convert.modeling.classes import config_class
    from gqkva_convert.modeling.families import GROUPED_FAMILIES

    for family in GROUPED_FAMILIES.values():
        config: Any = config_class(family)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        config.__new__ = _registering_new(family, config)


def _registering_new(family: GroupedFamily, config: Any) -> Callable[..., Any]:
    """A ``__new__`` that registers the family's models the first time."""
    done: list[None] = []

    def new(cls: type, *arguments: Any, **options: Any) -> Any:
        if not done:
            done.append(None)
            _register_models(family, config)
        return object.__new__(cls)

    return new


def _register_models(family: GroupedFamily, config: type) -> None:
    import transformers

    from gqkva_convert.modeling.classes import model_classes
    from gqkva_convert.modeling.families import grouped_name

    classes = model_classes(family)
    for auto, names in family.auto_classes.items():
        models = tuple(classes[grouped_name(name)] for name in names)
        mapping = getattr(transformers, auto)._model_mapping
        mapping.register(config, models if len(models) > 1 else models[0], exist_ok=True)


class _AutoFinder(importlib.abc.MetaPathFinder):
    """Finds the Auto classes' module as Python would, and registers after loading it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        register()
