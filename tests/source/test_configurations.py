"""Configurations as published: keys of other programs and old versions must not stop a conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.errors import FamilyError
from gqkva_convert.source.config_keys import check_config
from gqkva_convert.source.model import block_layout

HERE = Path("model")

# What published configurations of these families hold beside the keys transformers writes today.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama": {
        "pretraining_tp": 1,
        "rope_scaling": None,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "mistral": {"sliding_window": 4096, "attention_dropout": 0.0, "rope_theta": 1e6},
    "qwen2": {
        "use_sliding_window": False,
        "max_window_layers": 28,
        "sliding_window": 131072,
        "use_mrope": False,
    },
    "starcoder2": {
        "attention_softmax_in_fp32": True,
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
        "sliding_window": 4096,
    },
    "stablelm": {"rotary_scaling_factor": 1.0, "partial_rotary_factor": 0.25, "attention_dropout": 0.0},
    "phi3": {"full_attn_mod": 1, "sliding_window": 2047, "original_max_position_embeddings": 4096},
    "gpt2": {
        "n_ctx": 1024,
        "attn_pdrop": 0.1,
        "task_specific_params": {"text-generation": {"do_sample": True}},
    },
    "gpt_neox": {"rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True},
    "bert": {
        "pooler_num_attention_heads": 12,
        "pooler_size_per_head": 128,
        "position_embedding_type": "absolute",
    },
    "t5": {"n_positions": 512, "relative_attention_num_buckets": 32, "output_past": True},
    "bart": {"static_position_embeddings": False, "normalize_embedding": True, "add_bias_logits": False},
    "vit": {"attention_probs_dropout_prob": 0.0, "qkv_bias": True},
}


@pytest.mark.parametrize("model_type", sorted(PUBLISHED))
def test_published_keys_are_accepted(model_type: str) -> None:
    """A refusal names a danger; one that names nothing teaches users to ignore it."""
    check_config({"model_type": model_type, **PUBLISHED[model_type]}, FAMILIES[model_type], HERE)


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("starcoder2", "scale_attn_weights", False),
        ("stablelm", "rotary_scaling_factor", 2.0),
        ("phi3", "full_attn_mod", 2),
    ],
)
def test_known_keys_are_accepted_only_at_known_values(model_type: str, key: str, value: Any) -> None:
    """The same key with another value is another attention."""
    with pytest.raises(FamilyError, match=key):
        check_config({"model_type": model_type, key: value}, FAMILIES[model_type], HERE)


@pytest.mark.parametrize(
    ("model_type", "config", "heads", "head_dim"),
    [
        (
            "siglip",
            {"text_config": {"model_type": "siglip_text_model"}, "vision_config": {}},
            (12, 12),
            (64, 64),
        ),
        (
            "clip",
            {"text_config": {}, "vision_config": {"hidden_size": 1024, "num_attention_heads": 16}},
            (8, 16),
            (64, 64),
        ),
        ("clip", {}, (8, 12), (64, 64)),
    ],
)
def test_towers_that_leave_keys_out_have_their_defaults(
    model_type: str, config: dict[str, Any], heads: tuple[int, ...], head_dim: tuple[int, ...]
) -> None:
    """Published SigLIP configurations name little but what differs."""
    layouts = [block_layout(config, attention) for attention in FAMILIES[model_type].attention]
    assert tuple(layout.num_attention_heads for layout in layouts) == heads
    assert tuple(layout.head_dim for layout in layouts) == head_dim


def test_null_key_value_heads_mean_multi_head_attention() -> None:
    """Transformers reads an explicit null as the number of attention heads, whatever the default."""
    config = {"hidden_size": 2048, "num_attention_heads": 16, "head_dim": 128, "num_key_value_heads": None}
    native = {name: family for name, family in FAMILIES.items() if family.is_native}
    heads = {name: block_layout(config, family.attention[0]).num_key_heads for name, family in native.items()}
    assert heads == dict.fromkeys(native, 16)
