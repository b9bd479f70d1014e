"""Key/value caches: made for a number of positions, measured, rewound to decode the same positions again."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, EncoderDecoderCache, StaticLayer


def make_cache(model: Any, kind: str, positions: int) -> Any:
    """Make an empty cache of a model.

    Args:
        model: A model that generates.
        kind: ``static`` or ``dynamic``.
        positions: Positions of generated text that a static cache has room for.
    """
    config = model.config
    if not config.is_encoder_decoder:
        if kind == "dynamic":
            return DynamicCache(config=config)
        return StaticCache(config=config, max_cache_len=positions)
    if kind == "dynamic":
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    # transformers would size a BART decoder's by the encoder's layers. What the encoder said is written once.
    names = ("decoder_layers", "num_decoder_layers")
    layers = next(getattr(config, name) for name in names if hasattr(config, name))
    return EncoderDecoderCache(
        Cache(layers=[StaticLayer(max_cache_len=positions) for _ in range(layers)]), DynamicCache()
    )


def cache_tensors(cache: Any) -> list[Tensor]:
    """Return keys and values of every layer, cross-attention's too."""
    if isinstance(cache, EncoderDecoderCache):
        return [*cache_tensors(cache.self_attention_cache), *cache_tensors(cache.cross_attention_cache)]
    return [
        states
        for layer in cache.layers
        for states in (layer.keys, layer.values)
        if isinstance(states, Tensor)
    ]


def rewind(cache: Any, positions: int) -> None:
    """Rewind a cache to its first positions.

    A window that has slid on keeps its newer keys in place of older ones, which costs a step the same.
    """
    if isinstance(cache, EncoderDecoderCache):
        rewind(cache.self_attention_cache, positions)
        return
    for layer in cache.layers:
        if isinstance(layer, StaticLayer):
            layer.cumulative_length.fill_(positions)
            if hasattr(layer, "cumulative_length_int"):  # of a sliding window
                layer.cumulative_length_int = positions
        else:
            layer.keys, layer.values = layer.keys[:, :, :positions], layer.values[:, :, :positions]
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = positions
