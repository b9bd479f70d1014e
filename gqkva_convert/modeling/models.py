"""Grouped classes of a family: the stock classes with the stored heads that the configuration names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import transformers
from transformers import conversion_mapping

from gqkva_convert.errors import LayoutError
from gqkva_convert.modeling.families import (
    MODEL_TYPE_PREFIX,
    GroupedFamily,
    auto_map,
    grouped_name,
    modeling_module,
)
from gqkva_convert.modeling.layouts import layouts_from_config
from gqkva_convert.modeling.resize import find_block, resize_block


class GroupedModel:
    """Resizes a stock model's attention blocks as ``config.attention_layouts`` says.

    Comes before the stock class among a class's bases. A block that the layouts do not name stays stock.
    """

    family: GroupedFamily
    block_class: type | None

    def post_init(self: Any) -> None:
        """Resize before the model's own initialisation, which then covers the new projections."""
        layouts = layouts_from_config(self.config.attention_layouts or {})
        for name, module in list(self.named_modules()):
            found = find_block(name, module, self.family.blocks)
            if found in layouts and not hasattr(module, "head_maps"):
                resize_block(module, layouts[found], self.family.facts, self.block_class)
        unknown = {kind for kind, _ in layouts} - set(self.family.blocks)
        if unknown:
            raise LayoutError(
                f"attention_layouts names {sorted(unknown)}, known are {list(self.family.blocks)}"
            )
        super().post_init()  # type: ignore[misc]

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether weights are drawn by code of its own: they are not, and transformers need not guess."""
        return False

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def save_pretrained(
        self: Any, save_directory: str | os.PathLike[str], *args: Any, **options: Any
    ) -> None:
        """Save as stock models do, with the file that lets transformers load the folder without gqkva."""
        automatic, type(self)._auto_class = type(self)._auto_class, None  # or one Auto class alone is named
        try:
            self.config.auto_map = auto_map(self.family, self.config.architectures)
            super().save_pretrained(save_directory, *args, **options)  # type: ignore[misc]
        finally:
            type(self)._auto_class = automatic
        if options.get("is_main_process", True):
            text = sys.modules[type(self).__module__].modeling_text(self.family)
            Path(save_directory, f"{modeling_module(self.family)}.py").write_text(text)


def define_config(family: GroupedFamily, module: str) -> type:
    """The grouped configuration class of a family.

    Args:
        family: The family.
        module: Name of the module that will hold the class.
    """
    attributes = {
        "__module__": module,
        "__doc__": f"`{family.config}` with ``attention_layouts``, the stored heads of each block.",
        "__annotations__": {"attention_layouts": "dict | None"},
        "model_type": f"{MODEL_TYPE_PREFIX}{family.model_type}",
        "attention_layouts": None,
    }
    return type(grouped_name(family.config), (getattr(transformers, family.config),), attributes)


def define_models(
    family: GroupedFamily, module: str, config: type, block_class: type | None = None
) -> dict[str, type]:
    """The grouped model classes of a family by name, one for each stock class.

    Args:
        family: The family.
        module: Name of the module that will hold the classes; its ``modeling_text`` gives the file that a
            saved model carries.
        config: The family's grouped configuration.
        block_class: The family's own attention block, where the stock forward cannot serve.
    """
    classes: dict[str, type] = {}
    for name in dict.fromkeys(name for names in family.auto_classes.values() for name in names):
        stock = getattr(transformers, name)
        attributes = {
            "__module__": module,
            "__doc__": f"`{name}` with grouped attention.",
            "config_class": config,
            "family": family,
            "block_class": block_class,
        }
        classes[grouped_name(name)] = type(grouped_name(name), (GroupedModel, stock), attributes)
        _share_tensor_names(stock, grouped_name(name))
    return classes


def _share_tensor_names(stock: type, grouped: str) -> None:
    """Let a grouped class load and save the tensor names that its stock class does."""
    mapping = conversion_mapping.get_checkpoint_conversion_mapping(stock.__name__)
    if mapping is not None:
        conversion_mapping.register_checkpoint_conversion_mapping(grouped, mapping, overwrite=True)
