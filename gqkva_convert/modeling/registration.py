"""Makes grouped models known to transformers' Auto classes, without importing transformers by itself."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gqkva_convert.modeling.families import GroupedFamily

# Holds the table from model types to configuration classes; loaded by the first use of any Auto class.
_TABLES = "transformers.models.auto.configuration_auto"


def register_when_loaded() -> None:
    """Register now if transformers' Auto classes are loaded, and otherwise as soon as they are."""
    if _TABLES in sys.modules:
        _register(sys.modules[_TABLES])
    elif not any(isinstance(finder, _TablesFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TablesFinder())


def _register(tables: ModuleType) -> None:
    """Put the grouped families into transformers' table of configurations, each class made when asked for.

    `AutoConfig.register` would need the classes themselves, and so every stock configuration and seconds of
    imports, in the middle of transformers' own.
    """
    from gqkva_convert.modeling.families import GROUPED_FAMILIES, grouped_type

    mapping: Any = tables.CONFIG_MAPPING
    if not isinstance(mapping._extra_content, _LazyClasses):
        mapping._extra_content = _LazyClasses(mapping._extra_content)
    for family in GROUPED_FAMILIES.values():
        mapping._extra_content.setdefault(grouped_type(family.model_type), family)


class _LazyClasses(dict[str, Any]):
    """Configuration classes by model type; a grouped family is replaced by its class on first use."""

    def __getitem__(self, model_type: str) -> Any:
        from gqkva_convert.modeling.families import GroupedFamily

        value = super().__getitem__(model_type)
        if isinstance(value, GroupedFamily):
            value = self[model_type] = _make_classes(value)
        return value

    def get(self, model_type: str, default: Any = None) -> Any:
        return self[model_type] if model_type in self else default  # noqa: SIM401 - that is this function

    def values(self) -> Any:
        return [self[model_type] for model_type in self]

    def items(self) -> Any:
        return [(model_type, self[model_type]) for model_type in self]


def _make_classes(family: GroupedFamily) -> Any:
    """Make a family's classes and give its models to the Auto classes; gives the configuration class."""
    from gqkva_convert.modeling.classes import config_class, model_classes
    from gqkva_convert.modeling.models import register_models

    config = config_class(family)
    models = model_classes(family)
    register_models(family, config, models)
    return config


class _TablesFinder:
    """Finds the module of the tables as Python would, and registers after loading it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _TABLES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)  # type: ignore[assignment]
        return spec


class _RegisteringLoader:
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register(module)
