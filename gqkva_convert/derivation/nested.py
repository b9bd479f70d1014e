"""From a type with a text model inside to its generated table, and that of a text model not known yet."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from gqkva_convert.architectures import FAMILIES, TEXT, Nested
from gqkva_convert.derivation.stock import build, modeling_file, stock_class, stock_config
from gqkva_convert.derivation.switches import find_defaults, find_switches
from gqkva_convert.derivation.table import (
    all_blocks,
    same_in_layers,
    small_config,
    stored_facts,
    stored_names,
)
from gqkva_convert.errors import FamilyError
from gqkva_convert.source.config_keys import may_change_attention

# Auto classes that give such models, the most usual first.
_AUTO = ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SPEECH_SEQ_2_SEQ", "CAUSAL_LM")
# Where the default configuration names none, parts of 128 features for time, height and width, as published.
_SECTIONS = [16, 24, 24]
_ENDINGS = ("ForConditionalGeneration", "ForCausalLM")


def text_types() -> list[str]:
    """Return the types of models that those Auto classes give."""
    from transformers.models.auto import modeling_auto

    found = {name for auto in _AUTO for name in getattr(modeling_auto, f"MODEL_FOR_{auto}_MAPPING_NAMES", {})}
    return sorted(found - set(FAMILIES))


def derive_nested(
    model_type: str, known: Container[str]
) -> tuple[Nested, dict[str, Any] | None, dict[str, Any]]:
    """Return what a type adds to its text model, that one's facts if it lacks a table, and small values.

    Args:
        model_type: The type.
        known: Types of text models that have generated tables.

    Raises:
        FamilyError: It has no text model inside, or one that a generated table cannot describe.
    """
    config = stock_config(model_type, {})
    text = getattr(config, TEXT, None)
    if text is None:
        raise FamilyError("it has no text_config")
    architecture = _architecture(model_type)
    ending = next((each for each in _ENDINGS if architecture.endswith(each)), None)
    if ending is None:
        raise FamilyError(f"{architecture} generates no text")
    if "mrope_section" in modeling_file(architecture).read_text():
        text.rope_parameters.setdefault("mrope_section", _SECTIONS)
    small = small_config(config)
    model = build(stock_config(model_type, small), architecture)
    blocks = all_blocks(model)
    stored, name_of = stored_names(model)
    held = {name for name, _ in model.named_parameters()}
    query = f"{blocks[0].projections['query'].module}.weight"
    prefixes = tuple(dict.fromkeys(name.partition("layers.")[0] for name in (name_of(query), query)))
    if not all(prefixes):
        raise FamilyError("its text model is stored without a prefix of its own")
    outer = Nested(
        model_type,
        architecture.removesuffix(ending),
        ending,
        text.model_type,
        prefixes,
        tuple(sorted(_towers(stored, prefixes[0]) | _towers(held, prefixes[-1]))),
        tuple(sorted(key for key in small if may_change_attention(key))),
    )
    if text.model_type in FAMILIES or text.model_type in known:
        return outer, None, small
    facts: dict[str, Any] = {"model_type": text.model_type, "stem": outer.stem, "tasks": ("CausalLM",)}
    facts["config"] = type(text).__name__
    facts |= stored_facts(model, blocks, same_in_layers(blocks), prefixes[:1])
    facts["prefixes"], facts["heads"] = ("model.", ""), ("lm_head.weight",)

    def rebuilt(values: Mapping[str, Any]) -> Any:
        return stock_class(architecture)(stock_config(model_type, {**small, TEXT: dict(values)}))

    inner = small[TEXT]
    switches = find_switches(text.model_type, rebuilt, inner, model, blocks, facts)
    return outer, facts | find_defaults(text.model_type, inner) | switches, small


def _architecture(model_type: str) -> str:
    from transformers.models.auto import modeling_auto

    for auto in _AUTO:
        found = getattr(modeling_auto, f"MODEL_FOR_{auto}_MAPPING_NAMES", {}).get(model_type)
        if found is not None:
            return found if isinstance(found, str) else str(found[0])
    raise FamilyError("transformers has no class of it that generates text")


def _towers(names: Iterable[str], prefix: str) -> set[str]:
    """Return patterns of the tensors outside the text model: one for each module beside it."""
    found = set()
    for name in names:
        if name.startswith(prefix) or name.endswith("lm_head.weight"):
            continue
        parts = name.split(".")
        depth = 2 if parts[0] == prefix.partition(".")[0] else 1
        found.add(name if len(parts) <= depth else ".".join([*parts[:depth], "*"]))
    return found
