"""The keys of a configuration: those that change attention must be known to the family's table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gqkva_convert.architectures import Family, Key
from gqkva_convert.errors import FamilyError, WeightError
from gqkva_convert.modeling.families import (
    GROUPED_FAMILIES,
    MODEL_TYPE_PREFIX,
    grouped_family,
    grouped_name,
    modeling_module,
)
from gqkva_convert.modeling.layouts import LAYOUTS
from gqkva_convert.source.deci import PER_LAYER, is_deci
from gqkva_convert.source.rope import stored_settings

# Keys that match change attention in some model. One that the family's table does not know, and that is not
# switched off, stops the conversion.
_ATTENTION_KEYS = re.compile(
    r"attn|attention|head|_kv|kv_|window|rope|rotary|alibi|qk_|qkv|softcap|sink|position_embedding|relative"
    r"|per_layer|block_config|layer_config|layer_types|cross|sparse|lora|compress"
    r"|causal|directional|^is_decoder$"
)
# Of these, keys for what a model does without them: false is what changes it.
_DIRECTION = re.compile(r"causal|directional")
_ROTATION = re.compile(r"^(use_|apply_)?(rope|rotary(_emb\w*|_pos\w*)?)$")
_SCALING = re.compile(r"^scale_(attn|attention|qk)|^(attn|attention)_scal")
# Auto classes of tokenizers and processors: code for these changes no model.
_INPUT_CLASSES = ("AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoVideoProcessor", "AutoFeature")
# Keys that transformers itself reads the same way in every family, or that only matter in training.
_COMMON_KEYS = frozenset(
    {
        # The kernel that computes attention; all compute the same.
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_flash_attn_2_enabled",
        "_flash_attn_3_enabled",
        "_sdpa_enabled",
        "attn_impl",
        "attn_implementation",
        "flash_attention",
        "flash_attn",
        "use_flash_attention",
        "use_flash_attention_2",
        "use_flash_attn",
        "use_flash_attn_2",
        "use_memory_efficient_attention",
        "use_sdpa_attention",
        "use_xformers_attention",
        "max_position_embeddings",
        "original_max_position_embeddings",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "partial_rotary_factor",
        "output_attentions",
    }
)
# Written by old versions of transformers as their defaults, read by none of the families here.
_FIXED_VALUES: dict[str, tuple[object, ...]] = {"position_embedding_type": ("absolute",)}


def may_change_attention(key: str) -> bool:
    """Return whether a key must be known to a family's table."""
    return key not in _COMMON_KEYS and "drop" not in key and _ATTENTION_KEYS.search(key) is not None


def is_grouped(config: dict[str, Any]) -> bool:
    """Return whether a configuration belongs to a grouped model."""
    return str(config.get("model_type")).startswith(MODEL_TYPE_PREFIX)


def check_config(config: dict[str, Any], family: Family, folder: Path) -> None:
    """Refuse a configuration that changes attention in a way the family's table does not know."""
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise WeightError(
            f"{folder}: the weights are quantised ({method}); averaging codes means nothing, "
            "convert the original checkpoint and quantise the result"
        )
    stored_settings(config)
    known = family.config_keys | _table_keys(family)
    if is_grouped(config):
        known |= {LAYOUTS}
        _check_class(config, family, folder)
    elif is_deci(config):
        known |= {PER_LAYER}
    else:
        _check_code(config, family, folder)
    towers = {name for name, _, inner in (key.partition(".") for key in _number_names(family)) if inner}
    nested = [(f"{name}.", config[name]) for name in sorted(towers) if isinstance(config.get(name), dict)]
    for path, part in [("", config), *nested]:
        for key, value in part.items():
            allowed = family.config_values.get(key) or _FIXED_VALUES.get(key)
            if allowed is not None:
                if value is not None and value not in allowed:
                    raise FamilyError(
                        f"{folder}: config.json sets {path}{key} to {value!r}; "
                        f"{family.model_type} is supported with {' or '.join(map(repr, allowed))}"
                    )
            elif (
                key not in known
                and key not in _COMMON_KEYS
                and "drop" not in key
                and _changes_attention(key, value, family)
            ):
                raise FamilyError(
                    f"{folder}: config.json sets {path}{key} to {value!r}, which the {family.model_type} "
                    "table does not know and which may change attention; remove the key if it does not"
                )


def _changes_attention(key: str, value: Any, family: Family) -> bool:
    """Return whether a key that the table does not know may make attention another than the family's."""
    if not _ATTENTION_KEYS.search(key) or value is None:
        return False
    if key == "is_decoder":  # a decoder is one anyway
        return bool(value) and family.is_encoder
    if _DIRECTION.search(key):
        says_causal = ("bi" not in key and "non" not in key) == bool(value)
        return says_causal == family.is_encoder
    if _ROTATION.match(key) and any(attention.rotary for attention in family.attention):
        return value is not True
    if _SCALING.match(key):
        return value is not True
    return bool(value)


def _check_code(config: dict[str, Any], family: Family, folder: Path) -> None:
    """Refuse a stock model type with a class that is not stock: its code may compute something else.

    Raises:
        FamilyError: Says which.
    """
    usual = (config.get("architectures") or [family.architecture])[0]
    code = config.get("auto_map") or {}
    for auto, place in code.items() if isinstance(code, dict) else [("auto_map", code)]:
        if not auto.startswith(_INPUT_CLASSES) and not _is_published(place, family):
            raise FamilyError(
                f"{folder}: config.json names code of its own (auto_map: {auto} is {place}), which is "
                "never run here and may compute something else than the class of transformers; if "
                f"transformers' {usual} computes the same, remove auto_map from config.json"
            )
    known = grouped_family(family).stock_classes
    for name in config.get("architectures") or ():
        if name not in known and not _is_of_transformers(name):
            raise FamilyError(
                f"{folder}: config.json names the class {name!r}, which transformers does not have; if "
                f"{family.architecture} computes the same, write that name instead"
            )


def _is_published(place: object, family: Family) -> bool:
    """Return whether code has the name under which it became transformers' own."""
    files = (f"configuration_{family.model_type}", f"modeling_{family.model_type}")
    return family.has_published_code and str(place).partition(".")[0] in files


def _is_of_transformers(name: str) -> bool:
    import transformers

    return hasattr(transformers, name)


def _check_class(config: dict[str, Any], family: Family, folder: Path) -> None:
    """Refuse a grouped model of an unknown class, or of code in another file than ours."""
    own = f"{modeling_module(GROUPED_FAMILIES[family.model_type])}."
    code = config.get("auto_map") or {}
    for place in code.values() if isinstance(code, dict) else [code]:
        if not str(place).startswith(own):
            raise FamilyError(f"{folder}: auto_map in config.json names {place}, which is not in {own}py")
    names = set(map(grouped_name, GROUPED_FAMILIES[family.model_type].stock_classes))
    wrong = set(config.get("architectures") or ()) - names
    if wrong:
        raise FamilyError(
            f"{folder}: config.json names the class {min(wrong)!r}; grouped ones of {family.model_type} are "
            f"{', '.join(sorted(names))}"
        )


def _table_keys(family: Family) -> set[str]:
    """Return the keys that the table reads, without the names of nested configurations."""
    keys = {name.rpartition(".")[2] for name in _number_names(family)}
    for attention in family.attention:
        named = [norm.key for norm in attention.norms] + [one.bias.key for one in attention.projections]
        keys.update(key.rpartition(".")[2] for key in named if key)
    return keys


def _number_names(family: Family) -> set[str]:
    """Return the names of the configuration's numbers that decide the layouts."""
    names = set()
    for attention in family.attention:
        names.add(attention.num_attention_heads.name)
        if isinstance(attention.head_dim, Key):
            names.add(attention.head_dim.name)
        if attention.num_key_value_heads is not None:
            names.add(attention.num_key_value_heads.name)
    return names
