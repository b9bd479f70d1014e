"""What llama.cpp expects of each family, as data: its architecture, tensors, shapes, and the keys it reads.

Every family here is run in llama.cpp by ``tests/runtimes/test_llama_cpp.py``; one that it has not run there
does not belong here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

# Sizes: of the vocabulary, the hidden states, the feed-forward part (inner), all query heads (query), all
# key or value heads (key), one head.
Shape = tuple[str, ...]

# Tensors of a Llama as GGUF names them, in transformers' order of axes.
SHAPES: dict[str, Shape] = {
    "token_embd": ("vocab", "width"),
    "output": ("vocab", "width"),
    "output_norm": ("width",),
    "attn_norm": ("width",),
    "attn_q": ("query", "width"),
    "attn_k": ("key", "width"),
    "attn_v": ("key", "width"),
    "attn_output": ("width", "query"),
    "ffn_norm": ("width",),
    "ffn_gate": ("inner", "width"),
    "ffn_up": ("inner", "width"),
    "ffn_down": ("width", "inner"),
}
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Biases:
    """Biases that a family has.

    Attributes:
        tensors: Tensors that have one.
        key: Configuration key that turns them on; None where they are always there.
        default: Where the key is absent.
    """

    tensors: tuple[str, ...]
    key: str | None = None
    default: bool = True


@dataclass(frozen=True)
class RuntimeFamily:
    """One ``model_type`` in llama.cpp.

    Attributes:
        architecture: llama.cpp's name.
        norm_key: Configuration key of the norms' epsilon; None for OLMo, whose norms have a fixed one.
        norm: Root-mean-square norms or layer norms.
        activations: Names that transformers has for the feed-forward part's, of which the architecture has
            one.
        tensors: Weights that every model has, with their shapes.
        biases: Biases, by the key that turns them on.
        is_interleaved: Whether its rotary positions turn neighbouring features, so that rows of queries
            and keys change places.
        gain_offset: What is added to every gain.
        is_tied: Whether embeddings are tied where the configuration does not say.
        shares_embeddings: Whether it takes the embeddings for the output where that is not stored; else
            they are stored twice.
        has_output: Whether it can have an output of its own.
        rope_types: Kinds of rotary positions that it computes as transformers does.
        windows: When ``sliding_window`` counts: ``always``, ``asked`` (``use_sliding_window``) or ``never``.
        default_window: ``sliding_window`` where the configuration does not say.
        head_norms: Configuration key of norms of each head, whose tensors become one.
        has_own_width: Whether heads together may be wider or narrower than the hidden states.
        instead: What else holds the model where they are and the architecture does not allow it.
    """

    architecture: str
    norm_key: str | None = "rms_norm_eps"
    norm: Literal["rms", "layer"] = "rms"
    activations: tuple[str, ...] = ("silu",)
    tensors: Mapping[str, Shape] = field(default_factory=lambda: SHAPES)
    biases: tuple[Biases, ...] = ()
    is_interleaved: bool = False
    gain_offset: float = 0.0
    is_tied: bool = False
    shares_embeddings: bool = True
    has_output: bool = True
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    windows: Literal["always", "asked", "never"] = "never"
    default_window: int | None = None
    head_norms: str | None = None
    has_own_width: bool = True
    instead: RuntimeFamily | None = None


def _without(*names: str, **more: Shape) -> dict[str, Shape]:
    return {name: shape for name, shape in {**SHAPES, **more}.items() if name not in names}


_NORM_BIASES = Biases(("output_norm", "attn_norm", "ffn_norm"))

LLAMA = RuntimeFamily(
    "llama",
    biases=(Biases(_ATTENTION, "attention_bias", False), Biases(_FEED_FORWARD, "mlp_bias", False)),
    is_interleaved=True,
    rope_types=("default", "linear", "yarn", "llama3"),
)
QWEN2 = RuntimeFamily(
    "qwen2",
    biases=(Biases(_ATTENTION[:3]),),
    windows="asked",
    has_own_width=False,
    # A Llama may have the same biases, and differs in nothing else.
    instead=replace(LLAMA, biases=(Biases(_ATTENTION[:3]),), windows="asked"),
)

RUNTIME_FAMILIES: dict[str, RuntimeFamily] = {
    "llama": LLAMA,
    "mistral": replace(LLAMA, biases=(), windows="always", default_window=4096),
    # Layers with key/value heads of their own number.
    "deci": replace(LLAMA, architecture="deci", biases=()),
    "qwen2": QWEN2,
    "qwen3": RuntimeFamily(
        "qwen3", tensors=_without(attn_q_norm=("head",), attn_k_norm=("head",)), windows="asked"
    ),
    "gemma": RuntimeFamily(
        "gemma",
        activations=("gelu_pytorch_tanh", "gelu"),  # transformers takes the second for the first
        gain_offset=1.0,
        is_tied=True,
        has_output=False,
    ),
    "phi": RuntimeFamily(
        "phi2",
        norm="layer",
        norm_key="layer_norm_eps",
        activations=("gelu_new", "gelu_pytorch_tanh"),
        tensors=_without("ffn_gate", "ffn_norm"),
        biases=(Biases(("output", "output_norm", "attn_norm", *_ATTENTION, "ffn_up", "ffn_down")),),
        shares_embeddings=False,
        has_own_width=False,
    ),
    "phi3": RuntimeFamily(
        "phi3",
        tensors=_without(
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
    "starcoder2": RuntimeFamily(
        "starcoder2",
        norm="layer",
        norm_key="norm_epsilon",
        activations=("gelu_pytorch_tanh",),
        tensors=_without("ffn_gate"),
        biases=(_NORM_BIASES, Biases((*_ATTENTION, "ffn_up", "ffn_down"))),
        is_tied=True,
        windows="always",
        has_own_width=False,
    ),
    "stablelm": RuntimeFamily(
        "stablelm",
        norm="layer",
        norm_key="layer_norm_eps",
        biases=(_NORM_BIASES, Biases(_ATTENTION[:3], "use_qkv_bias", False)),
        shares_embeddings=False,
        head_norms="qk_layernorm",
    ),
    "olmo": RuntimeFamily(
        "olmo",
        norm="layer",
        norm_key=None,
        tensors=_without("output_norm", "attn_norm", "ffn_norm"),
        is_interleaved=True,
    ),
    "olmo2": RuntimeFamily(
        "olmo2",
        tensors=_without(
            "attn_norm",
            "ffn_norm",
            attn_q_norm=("query",),
            attn_k_norm=("key",),
            post_attention_norm=("width",),
            post_ffw_norm=("width",),
        ),
    ),
}
