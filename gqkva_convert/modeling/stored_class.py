"""The class of a checkpoint: the one that its configuration names, if its tensors are that class's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any

from gqkva_convert.architectures import FAMILIES, Family, name_pattern
from gqkva_convert.errors import CheckpointError
from gqkva_convert.modeling.classes import class_named
from gqkva_convert.modeling.families import GROUPED_FAMILIES, MODEL_TYPE_PREFIX, grouped_name, stock_name


def stored_classes(family: Family, config: dict[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Return the stock class that a checkpoint stores; several where its tensors do not decide.

    The class that the configuration names, or one that transformers alone knows, unless its head is not
    stored: transformers would draw that anew. Then, and without a name, the family's usual class if its head
    is stored, whatever is stored beside it, or the class that has all heads that are; the usual one of
    several. A causal model stored under the name of its base model keeps its head, and a whole model under
    the name of its encoder its decoder. A named class of which attention is missing stays: half a download
    is no other model.

    Args:
        family: Its family.
        config: Its configuration, stock or grouped.
        names: Names of its tensors.
    """
    if family.is_derived:
        return (str((config.get("architectures") or [family.architecture])[0]),)
    family = FAMILIES[family.model_type]
    stored = set(names)
    known = GROUPED_FAMILIES[family.model_type].stock_classes
    named = next(map(stock_name, config.get("architectures") or ()), None)
    if named is not None and (named not in known or not _has_attention(named, family, stored)):
        return (named,)
    heads = [name for name in stored if any(_fits(head, name) for head in family.known_heads())]
    fitting = [name for name in known if _is_stored(name, family, config, stored)]
    explaining = [name for name in fitting if _explains(name, family, heads)]
    is_base = named == f"{family.stem}Model" and not family.is_encoder
    is_part = named in family.parts and not set(explaining) <= family.parts.keys()
    if named in fitting and not is_part and not (is_base and family.architecture in explaining and heads):
        return (str(named),)
    if family.architecture in fitting and any(_has(family.architecture, family, name) for name in heads):
        return (family.architecture,)
    pool = explaining or fitting or [named or family.architecture]
    usual = next((name for name in (family.architecture, f"{family.stem}Model") if name in pool), None)
    return (usual,) if usual is not None else tuple(pool)


def is_ignored(family: Family, name: str) -> bool:
    """Return whether transformers may leave a stored tensor unread: a buffer, or a part of other classes."""
    templates = [prefix + rest for prefix in family.prefixes for rest in (*family.dropped, "pooler.*")]
    return any(_fits(template, name) for template in (*templates, *family.dropped, *family.known_heads()))


def stored_loader(
    family: Family, config: dict[str, Any], names: Iterable[str], preferred: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return the class that loads a checkpoint, stock or grouped, and options for its constructor.

    Args:
        family: As `stored_classes` takes it.
        config: Likewise.
        names: Likewise.
        preferred: Stock class to take where the tensors are those of several.

    Raises:
        CheckpointError: They are those of several, and none is preferred.
    """
    stored = set(names)
    found = stored_classes(family, config, stored)
    if len(found) > 1 and preferred not in found:
        raise CheckpointError(unclear_class(found))
    name = str(preferred) if len(found) > 1 else found[0]
    is_grouped = str(config["model_type"]).startswith(MODEL_TYPE_PREFIX)
    loader = class_named(grouped_name(name) if is_grouped else name, family.architecture)
    # transformers would draw a pooler that is not stored.
    is_base = name == f"{family.stem}Model" and "add_pooling_layer" in signature(loader.__init__).parameters
    pooled = any(name_pattern(prefix + "pooler.*").fullmatch(n) for prefix in family.prefixes for n in stored)
    return loader, {"add_pooling_layer": False} if is_base and not pooled else {}


def unclear_class(classes: Sequence[str]) -> str:
    """Say that a checkpoint may be of several classes, and what to do."""
    return (
        f"config.json does not name the class of these tensors, which may be {' or '.join(classes)}; add "
        f'"architectures": ["{classes[0]}"], or another of these, to config.json'
    )


def _fits(template: str, name: str) -> bool:
    return name_pattern(template).fullmatch(name) is not None


def _heads_of(architecture: str, family: Family) -> tuple[str, ...]:
    return family.heads.get(architecture.removeprefix(family.stem), ())


def _has(architecture: str, family: Family, name: str) -> bool:
    """Return whether a tensor belongs to a class's head."""
    return any(_fits(template, name) for template in _heads_of(architecture, family))


def _explains(architecture: str, family: Family, heads: list[str]) -> bool:
    """Return whether a class has all heads that are stored."""
    own = (*_heads_of(architecture, family), *family.heads.get("", ()))
    return all(any(_fits(template, name) for template in own) for name in heads)


def _is_stored(architecture: str, family: Family, config: dict[str, Any], stored: set[str]) -> bool:
    """Return whether a class's attention and head are stored, or tied to what is."""
    return _has_attention(architecture, family, stored) and all(
        any(_fits(template, name) for name in stored) or _is_tied(template, family, config, stored)
        for template in _heads_of(architecture, family)
    )


def _has_attention(architecture: str, family: Family, stored: set[str]) -> bool:
    """Return whether every kind of attention of a class is stored."""
    firsts = (attention.projections[0].name for attention in family.part(architecture).attention)
    names = [f"{name.replace('{layer}', '0')}.weight" for name in firsts]
    return all(any(prefix + name in stored for prefix in family.prefixes) for name in names)


def _is_tied(name: str, family: Family, config: dict[str, Any], stored: set[str]) -> bool:
    """Return whether the configuration ties a tensor to one that is stored."""
    if not config.get("tie_word_embeddings", family.ties_by_default):
        return False
    originals = {original for copy, original in family.tied if copy == name}
    alike = originals | {copy for copy, original in family.tied if original in originals}
    return any(prefix + each in stored for prefix in ("", *family.prefixes) for each in alike)
