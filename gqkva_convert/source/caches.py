"""Sizes of KV caches."""

from __future__ import annotations

from gqkva_convert.checkpoint.dtypes import BITS
from gqkva_convert.heads import HeadLayout
from gqkva_convert.source.model import Block, SourceModel
from gqkva_convert.source.stored_block import stored_block


def cache_bytes(model: SourceModel, layouts: list[HeadLayout], cache: str) -> int:
    """Return the bytes of keys and values per position of a cache, in the dtype of the key projections.

    Args:
        model: The source.
        layouts: A layout for each of its blocks.
        cache: ``self`` for generated positions, ``cross`` for positions of the encoder.
    """
    return sum(
        (layout.num_key_heads + layout.num_value_heads) * layout.head_dim * _key_bytes(model, block)
        for block, layout in zip(model.blocks, layouts, strict=True)
        if block.attention.cache == cache
    )


def _key_bytes(model: SourceModel, block: Block) -> int:
    return BITS[stored_block(model, block).projection("key").weight.dtype] // 8
