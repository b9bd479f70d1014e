"""Llama and the families that store their tensors under the same names."""

from dataclasses import replace

from gqkva_convert.architectures.schema import (
    ALWAYS,
    NEVER,
    Attention,
    Bias,
    Family,
    HeadNorm,
    Key,
    Projection,
    Quotient,
    Role,
    Rotary,
)

CONFIGURED_BIAS = Bias(False, "attention_bias")
HEADS = Key("num_attention_heads")
HIDDEN_OVER_HEADS = Quotient(Key("hidden_size"), HEADS)
RECOMPUTED = {
    "layers.{layer}.self_attn.rotary_emb.inv_freq": "rotary frequencies, recomputed by transformers"
}

ATTENTION = Attention(
    kind="self",
    projections=(
        Projection("layers.{layer}.self_attn.q_proj", ("query",), CONFIGURED_BIAS),
        Projection("layers.{layer}.self_attn.k_proj", ("key",), CONFIGURED_BIAS),
        Projection("layers.{layer}.self_attn.v_proj", ("value",), CONFIGURED_BIAS),
        Projection("layers.{layer}.self_attn.o_proj", ("output",), CONFIGURED_BIAS, head_axis=1),
    ),
    num_layers=Key("num_hidden_layers"),
    num_attention_heads=HEADS,
    head_dim=Key("head_dim", HIDDEN_OVER_HEADS),
    num_key_value_heads=Key("num_key_value_heads", HEADS, null=HEADS),
    cache="self",
    rotary=Rotary("half"),
    input_gain="layers.{layer}.input_layernorm.weight",
)

LLAMA = Family(
    model_type="llama",
    # Question answering stores the base model as "transformer.".
    prefixes=("model.", "transformer.", ""),
    attention=(ATTENTION,),
    others=(
        "embed_tokens.weight",
        "norm.weight",
        "layers.{layer}.input_layernorm.weight",
        "layers.{layer}.post_attention_layernorm.weight",
        "layers.{layer}.mlp.*",
    ),
    heads=("lm_head.weight", "score.weight", "score.bias", "qa_outputs.*"),
    architecture="LlamaForCausalLM",
    dropped=RECOMPUTED,
    tied=(("lm_head.weight", "embed_tokens.weight"),),
)

_QKV_BIAS = {"q_proj": ALWAYS, "k_proj": ALWAYS, "v_proj": ALWAYS, "o_proj": NEVER}
_WINDOW_KEYS = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})


def _with_biases(biases: dict[str, Bias]) -> tuple[Projection, ...]:
    return tuple(
        replace(projection, bias=biases[projection.name.rpartition(".")[2]])
        for projection in ATTENTION.projections
    )


_NO_BIAS = _with_biases(dict.fromkeys(_QKV_BIAS, NEVER))

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    attention=(
        replace(
            ATTENTION, projections=_NO_BIAS, num_key_value_heads=Key("num_key_value_heads", 8, null=HEADS)
        ),
    ),
    config_keys=_WINDOW_KEYS,
)

QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    attention=(
        replace(
            ATTENTION,
            projections=_with_biases(_QKV_BIAS),
            num_key_value_heads=Key("num_key_value_heads", 32, null=HEADS),
        ),
    ),
    config_keys=_WINDOW_KEYS,
)

QWEN3 = replace(
    LLAMA,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    attention=(
        replace(
            ATTENTION,
            # Qwen3's default head_dim is 128, whatever its hidden size.
            head_dim=Key("head_dim", 128),
            num_key_value_heads=Key("num_key_value_heads", 32, null=HEADS),
            norms=(
                HeadNorm("layers.{layer}.self_attn.q_norm.weight", "query", "shared"),
                HeadNorm("layers.{layer}.self_attn.k_norm.weight", "key", "shared"),
            ),
        ),
    ),
    config_keys=_WINDOW_KEYS,
)

GEMMA = replace(
    LLAMA,
    model_type="gemma",
    architecture="GemmaForCausalLM",
    # Gemma's default head_dim is 256, whatever its hidden size.
    attention=(
        replace(
            ATTENTION,
            head_dim=Key("head_dim", 256),
            num_key_value_heads=Key("num_key_value_heads", 16, null=HEADS),
            gain_offset=1.0,  # its norms multiply by 1 + the stored gain
        ),
    ),
    config_keys=frozenset({"use_bidirectional_attention"}),
)

OLMO = replace(
    LLAMA,
    model_type="olmo",
    architecture="OlmoForCausalLM",
    # OLMo's layer norms have no weights, so none are stored.
    others=("embed_tokens.weight", "layers.{layer}.mlp.*"),
    config_keys=frozenset({"clip_qkv"}),
)

OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    attention=(
        replace(
            ATTENTION,
            # The norm runs over all heads at once; equal groups keep its statistic when heads agree.
            norms=(
                HeadNorm("layers.{layer}.self_attn.q_norm.weight", "query", "all_heads"),
                HeadNorm("layers.{layer}.self_attn.k_norm.weight", "key", "all_heads"),
            ),
        ),
    ),
    others=(
        "embed_tokens.weight",
        "norm.weight",
        "layers.{layer}.post_attention_layernorm.weight",
        "layers.{layer}.post_feedforward_layernorm.weight",
        "layers.{layer}.mlp.*",
    ),
)

_STABLELM_BIAS = Bias(False, "use_qkv_bias")

STABLELM = replace(
    LLAMA,
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    attention=(
        replace(
            ATTENTION,
            projections=_with_biases({**dict.fromkeys(_QKV_BIAS, _STABLELM_BIAS), "o_proj": NEVER}),
            head_dim=HIDDEN_OVER_HEADS,
            num_key_value_heads=Key("num_key_value_heads", 32, null=HEADS),
            rotary=Rotary("half", 0.25),
            norms=(
                HeadNorm(
                    "layers.{layer}.self_attn.q_layernorm.norms.{head}.weight",
                    "query",
                    "per_head",
                    key="qk_layernorm",
                    is_centred=True,
                ),
                HeadNorm(
                    "layers.{layer}.self_attn.k_layernorm.norms.{head}.weight",
                    "key",
                    "per_head",
                    key="qk_layernorm",
                    is_centred=True,
                ),
            ),
        ),
    ),
    others=(
        "embed_tokens.weight",
        "norm.*",
        "layers.{layer}.input_layernorm.*",
        "layers.{layer}.post_attention_layernorm.*",
        "layers.{layer}.mlp.*",
    ),
    config_values={"rotary_scaling_factor": (1.0,)},
)

_STARCODER2_BIAS = Bias(True, "use_bias")

STARCODER2 = replace(
    STABLELM,
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    attention=(
        replace(
            ATTENTION,
            projections=_with_biases(dict.fromkeys(_QKV_BIAS, _STARCODER2_BIAS)),
            head_dim=Key("head_dim", HIDDEN_OVER_HEADS),
            num_key_value_heads=Key("num_key_value_heads", 2, null=HEADS),
        ),
    ),
    config_keys=_WINDOW_KEYS,
    config_values={
        "attention_softmax_in_fp32": (True,),
        "scale_attention_softmax_in_fp32": (True,),
        "scale_attn_weights": (True,),
    },
)


def _phi_norms(module: str, role: Role) -> tuple[HeadNorm, ...]:
    return tuple(
        HeadNorm(
            f"{module}.{part}", role, "shared", key="qk_layernorm", ignores_head_dim=True, is_centred=True
        )
        for part in ("weight", "bias")
    )


PHI = replace(
    LLAMA,
    model_type="phi",
    architecture="PhiForCausalLM",
    attention=(
        replace(
            ATTENTION,
            projections=(
                *_with_biases(dict.fromkeys(_QKV_BIAS, ALWAYS))[:3],
                Projection("layers.{layer}.self_attn.dense", ("output",), ALWAYS, head_axis=1),
            ),
            rotary=Rotary("half", 0.5),
            norms=(
                *_phi_norms("layers.{layer}.self_attn.q_layernorm", "query"),
                *_phi_norms("layers.{layer}.self_attn.k_layernorm", "key"),
            ),
        ),
    ),
    others=(
        "embed_tokens.weight",
        "final_layernorm.*",
        "layers.{layer}.input_layernorm.*",
        "layers.{layer}.mlp.*",
    ),
    heads=("lm_head.weight", "lm_head.bias", "score.weight", "score.bias"),
)

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    attention=(
        replace(
            ATTENTION,
            projections=(
                Projection(
                    "layers.{layer}.self_attn.qkv_proj", ("query", "key", "value"), NEVER, packing="stacked"
                ),
                Projection("layers.{layer}.self_attn.o_proj", ("output",), NEVER, head_axis=1),
            ),
        ),
    ),
    config_keys=frozenset({"sliding_window"}),
    config_values={"full_attn_mod": (1,)},
)
