"""Configurations as published, with keys of older versions and without defaults: known, and proved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gqkva_convert.architectures import NATIVE
from gqkva_convert.derivation.proof import prove
from gqkva_convert.source.config_keys import check_config

# Numbers and keys about attention of a published model of each.
PUBLISHED: dict[str, dict[str, Any]] = {
    "mixtral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    "gemma3_text": {
        "attn_logit_softcapping": None,
        "head_dim": 256,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_attention_heads": 8,
        "num_hidden_layers": 34,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1000000,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    },
    "glm4": {
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
    },
    "smollm3": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "layer_types": ["full_attention"] * 36,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 4,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_proved(name: str) -> None:
    config = {"model_type": name, **PUBLISHED[name]}
    check_config(config, NATIVE[name], Path())
    assert set(prove(config, NATIVE[name]).licences.values()) == {True}
