"""The tensors of a checkpoint beside attention's projections: known, dropped or tied ones, and buffers."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gqkva_convert.architectures import name_pattern
from gqkva_convert.checkpoint.header import StoredTensor
from gqkva_convert.source.model import SourceModel


def count_parameters(model: SourceModel, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    """Count the weights among tensors, each tied one once, as transformers' ``num_parameters`` does.

    Args:
        model: The checkpoint that the tensors belong to, or that they are converted from.
        shapes: Names and shapes; buffers are not counted.
    """
    sizes = dict(shapes)
    skipped = _second_copies(model, sizes)
    skipped.update(name for name in sizes if _is_buffer(model, name))
    return sum(math.prod(shape) for name, shape in sizes.items() if name not in skipped)


def source_parameters(model: SourceModel) -> int:
    """Count the weights of a checkpoint, as `count_parameters` does."""
    return sum(math.prod(tensor.shape) for tensor in source_weights(model))


def source_weights(model: SourceModel) -> list[StoredTensor]:
    """Return the stored tensors that are weights, each tied one once."""
    tensors = model.checkpoint.tensors
    second = _second_copies(model, tensors)
    return [tensor for name, tensor in tensors.items() if name not in second and not _is_buffer(model, name)]


def source_buffers(model: SourceModel) -> list[StoredTensor]:
    """Return the stored tensors that are no weights: masks, numbers of positions, constants."""
    return [tensor for name, tensor in model.checkpoint.tensors.items() if _is_buffer(model, name)]


def _is_buffer(model: SourceModel, name: str) -> bool:
    tensor = model.checkpoint.tensors.get(name)
    if tensor is not None and not tensor.dtype.startswith(("F", "BF")):
        return True
    return name in model.family.buffers or drop_reason(model, name) is not None


def _second_copies(model: SourceModel, names: Iterable[str]) -> set[str]:
    """Return the names of tensors that the configuration ties to another one among the names."""
    known = set(names)
    groups: dict[str, list[str]] = {}
    for copy, original in tied_pairs(model):
        found = [name for name in (original, copy) if name in known]
        groups.setdefault(original, []).extend(found)
    return {name for found in groups.values() for name in dict.fromkeys(found) if name != found[0]}


def tied_pairs(model: SourceModel) -> list[tuple[str, str]]:
    """Return ``(copy, original)`` names, as this checkpoint spells them, that the configuration ties."""
    family, stored = model.family, model.checkpoint.tensors
    is_tied = model.config.get("tie_word_embeddings", family.ties_by_default)
    pairs = []
    for pair in family.tied:
        if is_tied or pair[0] in family.always_tied:
            copy, original = (
                model.prefix + name if model.prefix + name in stored or name not in stored else name
                for name in pair
            )
            pairs.append((copy, original))
    return pairs


def drop_reason(model: SourceModel, name: str) -> str | None:
    """Return why the family drops a tensor, or None if it does not."""
    for template, reason in model.family.dropped.items():
        if any(_matches(prefix + template, name, model) for prefix in {model.prefix, ""}):
            return reason
    return None


def is_other(model: SourceModel, name: str) -> bool:
    """Return whether the family knows a tensor as one outside attention."""
    templates = [model.prefix + template for template in model.family.others]
    return any(_matches(template, name, model) for template in (*templates, *model.family.known_heads()))


def _matches(template: str, name: str, model: SourceModel) -> bool:
    found = name_pattern(template).fullmatch(name)
    if found is None:
        return False
    layers = 1 + max(block.layer for block in model.blocks)
    return all(int(number) < layers for number in found.groups())
