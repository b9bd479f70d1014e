"""Llama and the families that store their tensors under the same names."""

from dataclasses import replace
from typing import Any

from gqkva_convert.architectures.gguf import NORM_BIASES, Biases, RuntimeFamily, shapes_without
from gqkva_convert.architectures.schema import (
    ALWAYS,
    HEADS,
    HIDDEN_OVER_HEADS,
    NEVER,
    Attention,
    Bias,
    Family,
    HeadNorm,
    Inputs,
    Key,
    Projection,
    Role,
    Rotary,
    Span,
    recomputed_rotary,
    separate,
)

CONFIGURED_BIAS = Bias(False, "attention_bias")
RECOMPUTED = recomputed_rotary("layers.{layer}.self_attn.")


def _projections(bias: Bias, output_bias: Bias | None = None) -> tuple[Projection, ...]:
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    return separate("layers.{layer}.self_attn.", *names, bias, output_bias)


def _norms(name: str, span: Span, **facts: Any) -> tuple[HeadNorm, ...]:
    """Return the norm on queries, and the same on keys."""
    roles: tuple[tuple[str, Role], ...] = (("q", "query"), ("k", "key"))
    return tuple(
        HeadNorm(f"layers.{{layer}}.self_attn.{short}_{name}", role, span, **facts) for short, role in roles
    )


ATTENTION = Attention(
    kind="self",
    projections=_projections(CONFIGURED_BIAS),
    head_dim=Key("head_dim", HIDDEN_OVER_HEADS),
    num_key_value_heads=Key("num_key_value_heads", HEADS, null=HEADS),
    cache="self",
    is_causal=True,
    rotary=Rotary("half"),
    input_gain="layers.{layer}.input_layernorm.weight",
)


def _attention(key_value_heads: int | None = None, **facts: Any) -> tuple[Attention, ...]:
    """Return Llama's attention block with other facts, and a default of its key/value heads."""
    if key_value_heads is not None:
        facts["num_key_value_heads"] = Key("num_key_value_heads", key_value_heads, null=HEADS)
    return (replace(ATTENTION, **facts),)


_WITHOUT_QUESTIONS = ("CausalLM", "SequenceClassification", "TokenClassification")

# Shared by all of these; each table adds its own facts.
_COMMON = Family(
    model_type="",
    stem="",
    usual="ForCausalLM",
    tasks=_WITHOUT_QUESTIONS,
    inputs=Inputs(),
    first_position=0,
    decoder_start=None,
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
    heads={
        "ForCausalLM": ("lm_head.weight",),
        "ForQuestionAnswering": ("qa_outputs.*",),
        "ForSequenceClassification": ("score.weight",),
        "ForTokenClassification": ("score.weight", "score.bias"),
    },
    dropped=RECOMPUTED,
    tied=(("lm_head.weight", "embed_tokens.weight"),),
    ties_by_default=False,
    gguf=None,
)

_LLAMA_GGUF = RuntimeFamily(
    "llama",
    attention_biases="stored",
    biases=(Biases(("ffn_gate", "ffn_up", "ffn_down"), "mlp_bias", False),),
    is_interleaved=True,
    rope_types=("default", "linear", "yarn", "llama3"),
)
_COMPARED_IN = ("CTranslate2", "ONNX Runtime", "vLLM")

LLAMA = replace(
    _COMMON,
    model_type="llama",
    stem="Llama",
    tasks=(*_WITHOUT_QUESTIONS, "QuestionAnswering"),
    gguf=_LLAMA_GGUF,
    compared_in=_COMPARED_IN,
)

_WINDOW_KEYS = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})


MISTRAL = replace(
    _COMMON,
    model_type="mistral",
    stem="Mistral",
    tasks=(*_WITHOUT_QUESTIONS, "QuestionAnswering"),
    inputs=Inputs("TokenizersBackend"),
    attention=_attention(8, projections=_projections(NEVER)),
    config_keys=_WINDOW_KEYS,
    gguf=replace(_LLAMA_GGUF, biases=(), windows="always", default_window=4096),
    compared_in=_COMPARED_IN,
)

QWEN2 = replace(
    _COMMON,
    model_type="qwen2",
    stem="Qwen2",
    tasks=(*_WITHOUT_QUESTIONS, "QuestionAnswering"),
    inputs=Inputs("Qwen2Tokenizer"),
    attention=_attention(32, projections=_projections(ALWAYS, NEVER)),
    config_keys=_WINDOW_KEYS,
    gguf=RuntimeFamily(
        "qwen2",
        attention_biases="stored",
        windows="asked",
        has_own_width=False,
        # A Llama may have the same biases, and differs in nothing else.
        instead=replace(_LLAMA_GGUF, biases=(), windows="asked"),
    ),
)

QWEN3 = replace(
    _COMMON,
    model_type="qwen3",
    stem="Qwen3",
    tasks=(*_WITHOUT_QUESTIONS, "QuestionAnswering"),
    inputs=Inputs("Qwen2Tokenizer"),
    attention=_attention(
        32,
        # Qwen3's default head_dim is 128, whatever its hidden size.
        head_dim=Key("head_dim", 128),
        norms=_norms("norm.weight", "shared"),
    ),
    config_keys=_WINDOW_KEYS,
    gguf=RuntimeFamily(
        "qwen3", tensors=shapes_without(attn_q_norm=("head",), attn_k_norm=("head",)), windows="asked"
    ),
)

GEMMA = replace(
    _COMMON,
    model_type="gemma",
    stem="Gemma",
    ties_by_default=True,
    inputs=Inputs("GemmaTokenizer"),
    # Gemma's default head_dim is 256, whatever its hidden size.
    attention=_attention(
        16,
        head_dim=Key("head_dim", 256),
        gain_offset=1.0,  # its norms multiply by 1 + the stored gain
    ),
    config_keys=frozenset({"use_bidirectional_attention"}),
    gguf=RuntimeFamily(
        "gemma",
        activations=("gelu_pytorch_tanh", "gelu"),  # transformers takes the second for the first
        is_tied=True,
        has_output=False,
    ),
)

OLMO = replace(
    _COMMON,
    model_type="olmo",
    stem="Olmo",
    tasks=("CausalLM", "SequenceClassification"),
    inputs=Inputs("GPTNeoXTokenizer"),
    # OLMo's layer norms have no weights, so none are stored.
    others=("embed_tokens.weight", "layers.{layer}.mlp.*"),
    config_keys=frozenset({"clip_qkv"}),
    gguf=RuntimeFamily(
        "olmo",
        norm="layer",
        norm_key=None,
        tensors=shapes_without("output_norm", "attn_norm", "ffn_norm"),
        is_interleaved=True,
    ),
)

OLMO2 = replace(
    _COMMON,
    model_type="olmo2",
    stem="Olmo2",
    tasks=("CausalLM", "SequenceClassification"),
    inputs=Inputs("TokenizersBackend"),
    attention=_attention(
        # The norm runs over all heads at once; equal groups keep its statistic when heads agree.
        norms=_norms("norm.weight", "all_heads"),
    ),
    others=(
        "embed_tokens.weight",
        "norm.weight",
        "layers.{layer}.post_attention_layernorm.weight",
        "layers.{layer}.post_feedforward_layernorm.weight",
        "layers.{layer}.mlp.*",
    ),
    gguf=RuntimeFamily(
        "olmo2",
        tensors=shapes_without(
            "attn_norm",
            "ffn_norm",
            attn_q_norm=("query",),
            attn_k_norm=("key",),
            post_attention_norm=("width",),
            post_ffw_norm=("width",),
        ),
    ),
)

_STABLELM_BIAS = Bias(False, "use_qkv_bias")

STABLELM = replace(
    _COMMON,
    model_type="stablelm",
    stem="StableLm",
    inputs=Inputs("TokenizersBackend"),
    attention=_attention(
        32,
        projections=_projections(_STABLELM_BIAS, NEVER),
        head_dim=HIDDEN_OVER_HEADS,
        rotary=Rotary("half", 0.25),
        norms=_norms("layernorm.norms.{head}.weight", "per_head", key="qk_layernorm", is_centred=True),
    ),
    others=(
        "embed_tokens.weight",
        "norm.*",
        "layers.{layer}.input_layernorm.*",
        "layers.{layer}.post_attention_layernorm.*",
        "layers.{layer}.mlp.*",
    ),
    config_values={"rotary_scaling_factor": (1.0,)},
    gguf=RuntimeFamily(
        "stablelm",
        norm="layer",
        norm_key="layer_norm_eps",
        attention_biases="stored",
        biases=(NORM_BIASES,),
        shares_embeddings=False,
    ),
)

_STARCODER2_BIAS = Bias(True, "use_bias")

STARCODER2 = replace(
    STABLELM,
    model_type="starcoder2",
    stem="Starcoder2",
    ties_by_default=True,
    inputs=Inputs("GPT2Tokenizer"),
    attention=_attention(
        2,
        projections=_projections(_STARCODER2_BIAS),
        head_dim=Key("head_dim", HIDDEN_OVER_HEADS),
    ),
    config_keys=_WINDOW_KEYS,
    config_values={
        "attention_softmax_in_fp32": (True,),
        "scale_attention_softmax_in_fp32": (True,),
        "scale_attn_weights": (True,),
    },
    gguf=RuntimeFamily(
        "starcoder2",
        norm="layer",
        norm_key="norm_epsilon",
        activations=("gelu_pytorch_tanh",),
        tensors=shapes_without("ffn_gate"),
        attention_biases="all",
        biases=(NORM_BIASES, Biases(("ffn_up", "ffn_down"))),
        is_tied=True,
        windows="always",
        has_own_width=False,
    ),
)


_PHI_NORM: dict[str, Any] = {"key": "qk_layernorm", "ignores_head_dim": True, "is_centred": True}

PHI = replace(
    _COMMON,
    model_type="phi",
    stem="Phi",
    inputs=Inputs("GPT2Tokenizer"),
    attention=_attention(
        projections=separate("layers.{layer}.self_attn.", "q_proj", "k_proj", "v_proj", "dense", ALWAYS),
        rotary=Rotary("half", 0.5),
        norms=(
            *_norms("layernorm.weight", "shared", **_PHI_NORM),
            *_norms("layernorm.bias", "shared", **_PHI_NORM),
        ),
    ),
    others=(
        "embed_tokens.weight",
        "final_layernorm.*",
        "layers.{layer}.input_layernorm.*",
        "layers.{layer}.mlp.*",
    ),
    heads={**_COMMON.heads, "ForCausalLM": ("lm_head.weight", "lm_head.bias")},
    has_published_code=True,
    gguf=RuntimeFamily(
        "phi2",
        norm="layer",
        norm_key="layer_norm_eps",
        activations=("gelu_new", "gelu_pytorch_tanh"),
        tensors=shapes_without("ffn_gate", "ffn_norm"),
        attention_biases="stored",
        biases=(Biases(("output", "output_norm", "attn_norm", "ffn_up", "ffn_down")),),
        shares_embeddings=False,
        has_own_width=False,
    ),
)

PHI3 = replace(
    _COMMON,
    model_type="phi3",
    stem="Phi3",
    inputs=Inputs("TokenizersBackend"),
    attention=_attention(
        projections=(
            Projection(
                "layers.{layer}.self_attn.qkv_proj", ("query", "key", "value"), NEVER, packing="stacked"
            ),
            Projection("layers.{layer}.self_attn.o_proj", ("output",), NEVER, head_axis=1),
        ),
    ),
    config_keys=frozenset({"sliding_window"}),
    config_values={"full_attn_mod": (1,)},
    has_published_code=True,
    gguf=RuntimeFamily(
        "phi3",
        tensors=shapes_without(
            "attn_q",
            "attn_k",
            "attn_v",
            "ffn_gate",
            attn_qkv=("query+2key", "width"),
            ffn_up=("2inner", "width"),
        ),
        windows="always",
        has_own_width=False,
    ),
)
