"""Writing a Llama in DeciLM's form."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from gqkva_convert.errors import NotExpressibleError
from gqkva_convert.heads import HeadLayout, Place
from gqkva_convert.modeling.families import stock_name
from gqkva_convert.source.deci import DECI, MISTRAL, PER_LAYER, is_deci, mistral_config
from gqkva_convert.source.rope import rope_settings

_CLASS = "DeciLMForCausalLM"
# What llama.cpp's converter writes down of a DeciLM's rotary positions.
_ROPE_TYPES = ("default", "linear", "llama3")


def require_deci_form(config: dict[str, Any], model_type: str) -> None:
    """Refuse a model that differs from a Llama in more than the number of its heads.

    Raises:
        NotExpressibleError: Says what DeciLM lacks.
    """
    if model_type not in ("llama", MISTRAL):
        raise _refused(f"it has the parts of a Llama, and those of a {model_type} differ")
    names = [stock_name(name) for name in config.get("architectures") or ()]
    if names and names != [f"{model_type.capitalize()}ForCausalLM"] and names != [_CLASS]:
        raise _refused(f"it is a language model, this is a {names[0]}")
    window = config.get("sliding_window", 4096)  # transformers' default for Mistral
    if model_type == MISTRAL and window and not is_deci(config):
        raise _refused(f"it attends to all positions, this one to sliding_window {window}")
    if config.get("hidden_act", "silu") != "silu":
        raise _refused(f"its hidden_act is silu, this one's {config['hidden_act']}")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise _refused("its projections have no biases")
    rope = rope_settings(mistral_config(config))
    turned = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if turned != 1.0:
        raise _refused(f"its heads turn whole, this one's by partial_rotary_factor {turned}")
    kind = rope["rope_type"]
    if kind not in _ROPE_TYPES:
        raise _refused(
            f"llama.cpp converts rotary positions of it that are {', '.join(_ROPE_TYPES)}, not {kind}"
        )


def _refused(reason: str) -> NotExpressibleError:
    return NotExpressibleError(f"DeciLM cannot hold this model: {reason}; export without --architecture")


def deci_config(config: dict[str, Any], layouts: Mapping[Place, HeadLayout]) -> dict[str, Any]:
    """Return a Llama's configuration in this form.

    Args:
        config: A stock or grouped configuration of Llama or Mistral; not changed.
        layouts: Equal groups of one number of attention heads, by kind and layer.
    """
    config = copy.deepcopy(config)
    for key in ("auto_map", "attention_layouts", "sliding_window", "pretraining_tp", "layer_types"):
        config.pop(key, None)
    counts = [layouts["self", layer].num_key_heads for layer in range(len(layouts))]
    first = layouts["self", 0]
    config.update(model_type=DECI, architectures=[_CLASS], num_attention_heads=first.num_attention_heads)
    config.update(head_dim=first.head_dim, num_key_value_heads=max(counts))
    config[PER_LAYER] = counts
    # Readers of this form are older than ``rope_parameters``.
    rope = rope_settings(mistral_config(config))
    config["rope_theta"], kind = rope.pop("rope_theta"), rope["rope_type"]
    config["rope_scaling"] = None if kind == "default" else {**rope, "type": kind}
    return config
