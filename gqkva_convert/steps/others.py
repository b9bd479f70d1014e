"""Tensors outside attention: copied, or dropped for a reason."""

from __future__ import annotations

import re
from functools import lru_cache

from gqkva_convert.checkpoint.reader import same_bytes
from gqkva_convert.source.model import SourceModel


def tied_copies(model: SourceModel) -> dict[str, str]:
    """Return tensors that repeat the bytes of the tensor that transformers ties them to, with the reason.

    Only where the configuration says that embeddings are tied: some loaders untie what is stored twice.
    """
    if not model.config.get("tie_word_embeddings"):
        return {}
    tensors, copies = model.checkpoint.tensors, {}
    with model.checkpoint.reader() as reader:
        for copy_name, original_name in model.family.tied:
            copy = tensors.get(copy_name) or tensors.get(model.prefix + copy_name)
            original = tensors.get(model.prefix + original_name) or tensors.get(original_name)
            if copy and original and copy is not original and same_bytes(copy, original, reader):
                copies[copy.name] = f"the same bytes as {original.name}, which transformers ties it to"
    return copies


def drop_reason(model: SourceModel, name: str) -> str | None:
    """Return why the family drops a tensor, or None if it does not."""
    for template, reason in model.family.dropped.items():
        if any(_matches(prefix + template, name, model) for prefix in {model.prefix, ""}):
            return reason
    return None


def is_other(model: SourceModel, name: str) -> bool:
    """Return whether the family knows a tensor as one outside attention."""
    templates = [model.prefix + template for template in model.family.others]
    return any(_matches(template, name, model) for template in (*templates, *model.family.heads))


def _matches(template: str, name: str, model: SourceModel) -> bool:
    found = _pattern(template).fullmatch(name)
    if found is None:
        return False
    layers = 1 + max(block.layer for block in model.blocks)
    return all(int(number) < layers for number in found.groups())


@lru_cache(maxsize=4096)
def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template)
    return re.compile(text.replace(re.escape("{layer}"), r"(\d+)").replace(re.escape("*"), ".+"))
