"""`gqkva init`: a model with fresh weights and its tokenizer or image processor, for pre-training."""

from __future__ import annotations

import difflib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from gqkva_convert.architectures import FAMILIES, Family
from gqkva_convert.checkpoint.dtypes import FLOAT_BY_NAME, unknown_dtype
from gqkva_convert.checkpoint.jsonfile import read_json, write_json
from gqkva_convert.checkpoint.publish import published_folder
from gqkva_convert.conversion.init_processors import (
    default_config,
    fresh_tokenizer,
    image_processor,
    vocabulary_of,
)
from gqkva_convert.errors import CheckpointError, FamilyError, UsageError
from gqkva_convert.heads import Variant
from gqkva_convert.modeling.families import GROUPED_FAMILIES
from gqkva_convert.plans.config import config_for
from gqkva_convert.plans.plan import BlockPlan, Plan, plan_layouts
from gqkva_convert.source.config_keys import check_config
from gqkva_convert.source.model import Block, block_layout, config_number


def init(
    architecture: str,
    out: str | Path,
    *,
    gkv: int | None = None,
    gq: int | None = None,
    config: str | Path | None = None,
    task: str | None = None,
    blocks: str | None = None,
    tokenizer: str | Path | None = None,
    tokenizer_data: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    overwrite: bool = False,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write a model with the family's own initialisation, with all stored heads or fewer.

    A model of images gets an image processor that scales them to its size; a model of texts a tokenizer
    where one is named, and the vocabulary and special tokens of it where the configuration names none.

    Args:
        architecture: Model type, such as ``vit``, ``llama``, ``gpt2`` or ``t5``.
        out: Folder to write.
        gkv: Key/value heads; None for the configuration's number, without ``gq`` too.
        gq: Query heads; None for one an attention head.
        config: JSON file with a stock configuration or some keys of it; transformers' defaults for the rest.
        task: Stock model class, such as ``ViTForImageClassification``; None for the family's usual one.
        blocks: Kinds of attention to group, as for `convert`; None for all.
        tokenizer: Folder or Hub id of a model whose tokenizer to take.
        tokenizer_data: Data to train a byte-level BPE tokenizer on, as large as the configuration's
            ``vocab_size``.
        seed: Seed of the weights.
        dtype: Dtype of the weights.
        overwrite: Replace an existing checkpoint folder.
        dry_run: Only count; nothing is written, drawn or trained.

    Returns:
        JSON data: the folder, its class and its number of parameters.

    Raises:
        GqkvaError: With a message for the user; nothing is written to ``out`` then.
    """
    if not 0 <= seed < 2**63:
        raise UsageError(f"--seed {seed}: from 0 to {2**63 - 1}")
    family = FAMILIES.get(architecture)
    if family is None:
        raise FamilyError(f"no family {architecture!r}; known are {', '.join(sorted(FAMILIES))}")
    given = _given_config(config)
    defaults = default_config(family)
    trained_on = None if dry_run else tokenizer_data
    reader = fresh_tokenizer(family, given, defaults, tokenizer, trained_on)
    stock = _stock_config({**vocabulary_of(reader, family, defaults, given), **given}, family, task)
    check_config(stock, family, Path("config.json") if config is None else Path(config))
    family = family.part(stock["architectures"][0])
    plan = _plan(stock, family, None if gq is None and gkv is None else Variant(gq, gkv), blocks)
    layouts = {block.place: block.target for block in plan.blocks}
    target = config_for(stock, family, layouts, is_native=plan.is_native(family))

    if dtype not in FLOAT_BY_NAME:
        raise UsageError(unknown_dtype(dtype))

    import torch
    import transformers

    from gqkva_convert.modeling.classes import class_named

    transformers.logging.disable_progress_bar()

    name = target["architectures"][0]
    torch.manual_seed(seed)
    try:
        with torch.device("meta") if dry_run else nullcontext():
            model = class_named(name, family.architecture)._from_config(
                transformers.AutoConfig.for_model(**target), dtype=getattr(torch, dtype)
            )
    except Exception as error:  # whatever transformers raises for a value it cannot build with
        raise _refused(error) from error
    image_settings = image_processor(stock) if reader is None and "image_size" in stock else None
    if not dry_run:
        with published_folder(Path(out), overwrite=overwrite) as folder:
            model.save_pretrained(folder)
            if reader is not None:
                reader.save_pretrained(folder)
            if image_settings is not None:
                write_json(folder / "preprocessor_config.json", image_settings)
    return {
        "folder": str(out),
        "class": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(value.numel() * value.element_size() for value in model.parameters()),
        "variant": " and ".join(dict.fromkeys(block.target.name for block in plan.blocks)),
    }


def _given_config(file: str | Path | None) -> dict[str, Any]:
    """Read the user's configuration file; empty without one.

    Raises:
        FamilyError: It cannot be read.
    """
    if file is None:
        return {}
    try:
        given = read_json(Path(file))
    except CheckpointError as error:
        raise FamilyError(f"--config {str(error).partition(';')[0]}") from error
    if not isinstance(given, dict):
        raise FamilyError(f"{file}: a configuration is a JSON object, found {type(given).__name__}")
    return given


def _refuse_misspelt(given: dict[str, Any], config: Any) -> None:
    """Refuse keys that transformers would keep and nothing would read, where they are nearly another.

    Raises:
        FamilyError: Names key and nearest key.
    """
    known = {*type(config)().to_dict(), *type(config).attribute_map, "architectures"}
    for key in given:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if key not in known and near and near[0] not in given:
            raise FamilyError(f"the configuration has no key {key!r}; did you mean {near[0]!r}?")


def _stock_config(given: dict[str, Any], family: Family, task: str | None) -> dict[str, Any]:
    """Return a whole configuration, with transformers' defaults for keys that were not given."""
    import transformers

    if given.get("model_type", family.model_type) != family.model_type:
        raise FamilyError(f"the configuration is of a {given['model_type']}, not of a {family.model_type}")
    named = given.get("architectures") or [family.architecture]
    name = task or (named[0] if isinstance(named, list) else named)
    known = sorted(GROUPED_FAMILIES[family.model_type].stock_classes)
    if name not in known:
        raise FamilyError(f"{family.model_type} has no class {name!r}; choose of {', '.join(known)}")
    keys = {key: value for key, value in given.items() if key != "model_type"}
    try:
        config = transformers.AutoConfig.for_model(family.model_type, **keys)
    except Exception as error:  # whatever transformers raises for a value it cannot take
        raise _refused(error) from error
    _refuse_misspelt(keys, config)
    return {**config.to_dict(), "architectures": [name]}


def _refused(error: Exception) -> FamilyError:
    message = str(error).strip().splitlines()
    return FamilyError(
        f"the configuration is refused by transformers: {message[-1].strip() if message else error!r}"
    )


def _plan(config: dict[str, Any], family: Family, variant: Variant | None, blocks: str | None) -> Plan:
    found = tuple(
        Block(attention, layer, block_layout(config, attention), "")
        for attention in family.attention
        for layer in range(config_number(config, attention.num_layers))
    )
    if variant is None:
        if blocks is not None:
            raise UsageError("--blocks says what to group; give --gkv, --gq or both")
        targets = tuple(block.layout for block in found)
    else:
        targets = plan_layouts(family, found, variant, blocks)
    plans = tuple(
        BlockPlan.unchanged(block.place, target) for block, target in zip(found, targets, strict=True)
    )
    return Plan("mha" if variant is None else variant.slug, "neighbour", "random", 0, None, plans)
