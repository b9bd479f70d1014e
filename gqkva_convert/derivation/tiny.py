"""A configuration with small sizes: kinds of layers, flags, positions and ratios of heads stay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Stored key/value heads: four can be merged in pairs and reordered in a way that is no rotation of them.
KEY_VALUE_HEADS = 4
# Wide enough that a quarter of a head turns in two planes, which tells the rotary styles apart.
HEAD_DIM = 16
VOCABULARY = 64
# Layers kept beyond one of each kind; rules such as "every sixth layer" show in them.
LAYERS = 8

_INNER = 24
# Keys of sizes, and what they become; the first pattern that matches counts.
_SIZES: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"(^|_)head_dim$"), HEAD_DIM),
    (re.compile(r"vocab_size|vocabulary_size"), VOCABULARY),
    (re.compile(r"intermediate|ffn_|inner_size|inner_dim|feed_forward.*(size|dim)|mlp_hidden"), _INNER),
    (re.compile(r"(^|_)(n_group|topk_group)$"), 1),
)
_EXPERTS = re.compile(r"^(moe_)?(num|n)_(local_|routed_|)?experts$|^moe_num_experts$")
_SHARED_EXPERTS = re.compile(r"(num|n)_shared_experts?$")
_CHOSEN_EXPERTS = re.compile(r"experts_per_tok$|top_?k(_experts)?$|^moe_k$|num_selected_experts")
_TOKENS = re.compile(r"(^|_)token_id$|_token_ids?$|_token_index$")
_WIDTHS = ("hidden_size", "hidden_dim", "embed_dim", "d_model")
_TOWER_WIDTHS = (*_WIDTHS, "out_hidden_size", "projection_dim", "output_dim")
_TOWER_HEADS = re.compile(r"(num_|attention_|key_value_|^)heads$")
_TOWER_LAYERS = re.compile(r"layers$|^depth$")


def tiny_heads(heads: int, key_value_heads: int) -> tuple[int, int]:
    """Return small numbers of attention and key/value heads whose ratio is 1, even or odd as that given."""
    ratio = heads // key_value_heads
    size = 1 if ratio <= 1 else 2 + ratio % 2
    return KEY_VALUE_HEADS * size, KEY_VALUE_HEADS


def shrink(config: Mapping[str, Any], heads: int, key_value_heads: int, head_dim: int) -> dict[str, Any]:
    """Return a stock configuration with small sizes.

    Args:
        config: The configuration with all keys of its class, as the class's ``to_dict`` gives them.
        heads: Its attention heads.
        key_value_heads: Its key/value heads.
        head_dim: Its features per head.
    """
    layers = int(config["num_hidden_layers"])
    kept = chosen_layers(config, layers)
    few, stored = tiny_heads(heads, key_value_heads)
    width = few * HEAD_DIM
    is_square = "head_dim" not in config or any(config.get(key) == heads * head_dim for key in _WIDTHS)
    small: dict[str, Any] = {}
    for key, value in config.items():
        if key == "num_attention_heads":
            small[key] = few
        elif key == "num_key_value_heads":
            small[key] = stored
        elif key == "num_hidden_layers":
            small[key] = len(kept)
        elif key in _WIDTHS and isinstance(value, int):
            small[key] = width if is_square else width + HEAD_DIM
        elif key == "rotary_dim" and isinstance(value, int):
            small[key] = value * HEAD_DIM // head_dim
        elif key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            small[key] = _shrunk_positions(value, head_dim)
        else:
            small[key] = _shrunk(key, of_layers(value, layers, kept))
    return small


def shrink_tower(key: str, value: Any) -> Any:
    """Return a value outside the text model with small sizes; a tower's configuration with those in it."""
    if isinstance(value, dict) and not key.startswith(("id2label", "label2id", "rope")):
        return {inner: shrink_tower(str(inner), each) for inner, each in value.items()}
    if not isinstance(value, int) or isinstance(value, bool):
        return _shrunk(key, value)
    if key in _TOWER_WIDTHS:
        return KEY_VALUE_HEADS * HEAD_DIM
    if _TOWER_HEADS.search(key):
        return KEY_VALUE_HEADS
    return min(value, 2) if _TOWER_LAYERS.search(key) else _shrunk(key, value)


def of_layers(value: Any, layers: int, kept: Sequence[int]) -> Any:
    """Return a configuration's value for some of its layers: lists with an entry or a number a layer are cut.

    Args:
        value: The value; anything else than such a list is returned as it is.
        layers: Layers of the configuration.
        kept: Layers to keep, in order.
    """
    if _numbers_layers(value, layers):
        return [place for place, layer in enumerate(kept) if layer in value]
    if isinstance(value, list) and len(value) == layers and layers > 1:
        return [value[layer] for layer in kept]
    return value


def chosen_layers(config: Mapping[str, Any], layers: int) -> list[int]:
    """Return the layers to keep: the first ones, and one of each further kind that lists name."""
    numbered = [value for value in config.values() if _numbers_layers(value, layers)]
    lists = [
        value
        for value in config.values()
        if isinstance(value, list) and len(value) == layers and value not in numbered
    ]
    kinds: dict[str, int] = {}
    for layer in range(layers):
        kind = [each[layer] for each in lists] + [layer in each for each in numbered]
        kinds.setdefault(repr(kind), layer)
    return sorted({*range(min(layers, LAYERS)), *kinds.values()})


def _numbers_layers(value: Any, layers: int) -> bool:
    """Return whether a value is a list of some layers' numbers."""
    if not isinstance(value, list) or len(value) < 2 or not all(type(each) is int for each in value):
        return False
    return value == sorted(set(value)) and value[0] >= 0 and value[-1] < layers


def _shrunk(key: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_shrunk(key, each) for each in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if _TOKENS.search(key):
        return value % VOCABULARY if value >= 0 else value
    if _EXPERTS.search(key):
        return min(value, 4)
    if _SHARED_EXPERTS.search(key):
        return min(value, 1)
    if _CHOSEN_EXPERTS.search(key):
        return min(value, 2)
    found = next((size for pattern, size in _SIZES if pattern.search(key)), None)
    return value if found is None or not value else min(value, found)


def _shrunk_positions(settings: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Return rotary settings whose lists have an entry per plane of the smaller heads."""
    small: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            small[key] = _shrunk_positions(value, head_dim)
        elif isinstance(value, list) and key.endswith("_section"):
            small[key] = _shares(value, sum(value) * HEAD_DIM // head_dim)
        elif isinstance(value, list) and key.endswith("_factor"):
            small[key] = value[: max(1, len(value) * HEAD_DIM // head_dim)]
        else:
            small[key] = value
    return small


def _shares(parts: list[int], total: int) -> list[int]:
    """Return whole numbers of a given sum in about the ratios of others."""
    shares = [max(1, part * total // sum(parts)) for part in parts]
    shares[-1] += total - sum(shares)
    return shares
