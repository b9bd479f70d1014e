"""A tiny random model of every family, as stock transformers builds and saves it.

All sizes in a model differ, so that swapped axes cannot pass by luck. Weights are larger than
transformers' own initialisation, so that attention is far from uniform and a mistake shows in the logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

HEADS = 6

_DECODER = {
    "vocab_size": 37,
    "hidden_size": 30,
    "intermediate_size": 26,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 64,
}
_WITH_HEAD_DIM = {**_DECODER, "head_dim": 4}
_HEAD_DIM_8 = {**_DECODER, "hidden_size": 48}
_ENCODER = {
    "vocab_size": 37,
    "hidden_size": 30,
    "intermediate_size": 26,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 20,
}
_IMAGE = {
    "hidden_size": 30,
    "intermediate_size": 26,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "image_size": 8,
    "patch_size": 4,
}
_TOWERS = {
    "text_config": {**_ENCODER, "bos_token_id": 35, "eos_token_id": 36},
    "vision_config": {**_IMAGE, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 12},
}
_SEQ2SEQ = {
    "vocab_size": 37,
    "d_model": 30,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 26,
    "decoder_ffn_dim": 22,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _WITH_HEAD_DIM,
    "mistral": _WITH_HEAD_DIM,
    "qwen2": _DECODER | {"hidden_size": 48},
    "qwen3": _WITH_HEAD_DIM,
    "phi": _HEAD_DIM_8 | {"qk_layernorm": True},
    "phi3": _HEAD_DIM_8 | {"pad_token_id": 0, "eos_token_id": 1},
    "stablelm": _HEAD_DIM_8 | {"qk_layernorm": True, "use_qkv_bias": True},
    "olmo": _HEAD_DIM_8,
    "olmo2": _HEAD_DIM_8,
    "gemma": _WITH_HEAD_DIM,
    "starcoder2": _HEAD_DIM_8,
    "gpt2": {"vocab_size": 37, "n_embd": 30, "n_layer": 2, "n_head": HEADS, "n_positions": 20},
    "gpt_neox": {key: value for key, value in _HEAD_DIM_8.items() if key != "num_key_value_heads"},
    "opt": {
        "vocab_size": 37,
        "hidden_size": 30,
        "ffn_dim": 26,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "word_embed_proj_dim": 22,
        "max_position_embeddings": 20,
    },
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "xlm-roberta": _ENCODER,
    "camembert": _ENCODER,
    "electra": _ENCODER | {"embedding_size": 22},
    "distilbert": {
        "vocab_size": 37,
        "dim": 30,
        "hidden_dim": 26,
        "n_layers": 2,
        "n_heads": HEADS,
        "max_position_embeddings": 20,
    },
    "vit": _IMAGE,
    "deit": _IMAGE,
    "dinov2": {key: value for key, value in _IMAGE.items() if key != "intermediate_size"} | {"mlp_ratio": 2},
    "clip": _TOWERS | {"projection_dim": 18},
    "siglip": _TOWERS | {"text_config": {**_TOWERS["text_config"], "projection_size": 36}},
    "t5": {
        "vocab_size": 37,
        "d_model": 28,
        "d_kv": 4,
        "d_ff": 26,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "num_heads": HEADS,
        "decoder_start_token_id": 0,
    },
    "bart": _SEQ2SEQ | {"max_position_embeddings": 20},
    "whisper": _SEQ2SEQ
    | {
        "num_mel_bins": 8,
        "max_source_positions": 20,
        "max_target_positions": 21,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    },
}


def build(model_type: str, architecture: str, seed: int = 0, **changes: Any) -> Any:
    """Build a tiny model of a family with random weights, in eval mode."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type, **(CONFIGS[model_type] | changes))
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.3)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
            else:
                parameter.uniform_(0.5, 1.5)
        model.tie_weights()
    return model.eval()


def save(model: Any, folder: Path, **options: Any) -> Path:
    """Save a model as transformers does."""
    model.save_pretrained(folder, **options)
    return folder


def inputs(model: Any, length: int = 9) -> dict[str, torch.Tensor]:
    """Return inputs that the tiny model takes."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    images = torch.randn(2, 3, 8, 8, generator=generator)
    name = type(model).__name__.removeprefix("Gqkva")
    if name.startswith(("ViT", "DeiT", "Dinov2")):
        return {"pixel_values": images}
    if name.startswith("Whisper"):
        features = torch.randn(2, 8, 40, generator=generator)
        return {
            "input_features": features,
            "decoder_input_ids": torch.randint(3, 37, (2, 5), generator=generator),
        }
    text = getattr(config, "text_config", config)
    tokens = torch.randint(3, text.vocab_size - 3, (2, length), generator=generator)
    if name.startswith(("CLIP", "Siglip")):
        return {"input_ids": tokens, "pixel_values": images}
    if config.is_encoder_decoder:
        return {"input_ids": tokens, "decoder_input_ids": tokens[:, :5]}
    return {"input_ids": tokens}


@torch.inference_mode()
def outputs(model: Any, length: int = 9) -> torch.Tensor:
    """Return a model's output for the fixed inputs."""
    result = model(**inputs(model, length))
    for name in ("logits", "logits_per_text", "last_hidden_state"):
        value = getattr(result, name, None)
        if value is not None:
            tensor: torch.Tensor = value
            return tensor
    raise AssertionError(f"{type(model).__name__} gives no logits")


def load(folder: Path, architecture: str) -> Any:
    """Load a folder with stock transformers; refuse missing, unexpected and resized tensors."""
    model, info = getattr(transformers, architecture).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    return model.eval()
