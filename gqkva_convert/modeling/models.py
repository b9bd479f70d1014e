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
from gqkva_convert.modeling.resize import find_block, resize_block, split_block


class GroupedModel:
    """Resizes a stock model's attention blocks as ``config.attention_layouts`` says.

    Comes before the stock class among a class's bases. A block that the layouts do not name stays stock.
    """

    family: GroupedFamily
    block_class: type | None

    def post_init(self: Any) -> None:
        """Resize before the model's own initialisation, which then covers the new projections."""
        layouts = layouts_from_config(self.config.attention_layouts or {})
        found = {}
        for name, module in list(self.named_modules()):
            place = find_block(name, module, self.family.blocks)
            if place is not None:
                found[place] = module
        kinds = {kind for kind, _ in found}  # an encoder alone has no decoder's
        for kind, layer in layouts:
            if kind not in self.family.blocks or (kind in kinds and (kind, layer) not in found):
                raise LayoutError(f"attention_layouts names layer {layer} of {kind!r}, which the model lacks")
        for place, module in found.items():
            if place in layouts and not hasattr(module, "head_maps"):
                resize_block(module, layouts[place], self.family.facts, self.block_class)
        super().post_init()  # type: ignore[misc]

    @classmethod
    def maybe_distribute_model(cls, model: Any, distributed_config: Any, *args: Any) -> Any:
        """As stock models are; each process attends with its part of the heads.

        Raises:
            LayoutError: Tensor parallelism was asked for, and a layout has no equal parts.
        """
        parts = getattr(distributed_config, "tp_size", None) or 1
        if parts > 1:
            asked = distributed_config.tp_plan
            plan = {**(model.tp_plan or {}), **(asked if isinstance(asked, dict) else {})}
            for name, module in model.named_modules():
                if hasattr(module, "head_maps"):
                    split_block(module, name, plan, parts)
        return super().maybe_distribute_model(model, distributed_config, *args)  # type: ignore[misc]

    def init_continuous_batching(self: Any, *args: Any, **options: Any) -> Any:
        """As stock models do; the configuration then says how many key heads its cache keeps.

        Raises:
            NotImplementedError: Its cache cannot keep these heads.
        """
        blocks = [module for module in self.modules() if hasattr(module, "head_maps")]
        counts = {len(block.head_maps.keys.heads) for block in blocks}
        named = getattr(self.config, "num_key_value_heads", self.config.num_attention_heads)
        if counts != {named}:
            if len(counts) > 1 or not hasattr(self.config, "num_key_value_heads"):
                raise NotImplementedError(
                    "continuous batching sizes its cache by num_key_value_heads, one number for all layers, "
                    "and cannot keep this model's heads; use generate, or gqkva export"
                )
            self.config.num_key_value_heads = counts.pop()
        return super().init_continuous_batching(*args, **options)  # type: ignore[misc]

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
        if Path(save_directory, "config.json").is_file():  # written by the main process
            self._write_modeling_file(save_directory)

    def _upload_modified_files(self: Any, working_dir: Any, *args: Any, **options: Any) -> Any:
        self._write_modeling_file(working_dir)
        return super()._upload_modified_files(working_dir, *args, **options)  # type: ignore[misc]

    def _write_modeling_file(self: Any, folder: str | os.PathLike[str]) -> None:
        text = sys.modules[type(self).__module__].modeling_text(self.family)
        Path(folder, f"{modeling_module(self.family)}.py").write_text(text)


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
    for name in family.stock_classes:
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


def register_models(family: GroupedFamily, config: Any, models: dict[str, type]) -> None:
    """Give a family's models to transformers' Auto classes, which some stock classes use themselves."""
    for auto, names in family.auto_classes.items():
        found = tuple(models[grouped_name(name)] for name in names)
        mapping = getattr(transformers, auto)._model_mapping
        mapping.register(config, found if len(found) > 1 else found[0], exist_ok=True)


def _share_tensor_names(stock: type, grouped: str) -> None:
    """Let a grouped class load and save the tensor names that its stock class does."""
    mapping = conversion_mapping.get_checkpoint_conversion_mapping(stock.__name__)
    if mapping is not None:
        conversion_mapping.register_checkpoint_conversion_mapping(grouped, mapping, overwrite=True)
