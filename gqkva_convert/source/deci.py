"""Reading DeciLM's form of a Llama: layers with key/value heads of their own number.

``model_type`` ``deci`` and ``num_key_value_heads_per_layer``, as DeciLM-7B has them, which llama.cpp's
``conversion/deci.py`` reads. The ``block_configs`` of later models of that name are not written: there that
converter takes the width of a head from ``hidden_size / num_attention_heads`` and feed-forward sizes in
steps of 256.
"""

from __future__ import annotations

import copy
from typing import Any

from gqkva_convert.errors import FamilyError
from gqkva_convert.heads import HeadLayout, Place

DECI = "deci"
PER_LAYER = "num_key_value_heads_per_layer"
# The family whose tables describe it.
MISTRAL = "mistral"


def is_deci(config: dict[str, Any]) -> bool:
    """Return whether a configuration is of this form."""
    return config.get("model_type") == DECI


def mistral_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the same model as a Mistral without a window, with the most key/value heads of any layer.

    That is a Llama whose number of heads need not divide its width, as DeciLM's need not.
    """
    config = copy.deepcopy(config)
    for key in (PER_LAYER, "attention_bias", "mlp_bias"):
        config.pop(key, None)
    config.update(model_type=MISTRAL, architectures=["MistralForCausalLM"], sliding_window=None)
    if config.get("rope_parameters"):
        for key in ("rope_theta", "rope_scaling"):
            config.pop(key, None)
    return config


def deci_layouts(config: dict[str, Any], heads: int, head_dim: int, layers: int) -> dict[Place, HeadLayout]:
    """Return the layouts that a configuration of this form gives, by kind of attention and layer.

    Args:
        config: The configuration.
        heads: Attention heads of every layer.
        head_dim: Features per head.
        layers: Number of layers.

    Raises:
        FamilyError: A layer has no number of heads that divides the attention heads.
    """
    counts = config.get(PER_LAYER)
    if (
        not isinstance(counts, list)
        or len(counts) != layers
        or any(type(count) is not int or count < 1 or heads % count for count in counts)
    ):
        raise FamilyError(
            f"config.json: {PER_LAYER} must give {layers} layers a number each that divides "
            f"num_attention_heads {heads}, found {counts!r}"
        )
    return {("self", layer): HeadLayout.gqa(heads, count, head_dim) for layer, count in enumerate(counts)}
