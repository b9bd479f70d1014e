"""Facts of a family in llama.cpp: architecture, tensors, shapes, and the keys it reads.

Every family with such a part is run in llama.cpp by ``tests/runtimes/test_llama_cpp.py``; one that has not
been run there does not get one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


def shapes_without(*names: str, **more: Shape) -> dict[str, Shape]:
    """Return a Llama's tensors without some, and with others."""
    return {name: shape for name, shape in {**SHAPES, **more}.items() if name not in names}


@dataclass(frozen=True)
class Biases:
    """Biases that a family has.

    Attributes:
        tensors: Tensors that have one.
        key: Configuration key that turns them on; None where they are always there.
        default: Value where the key is absent.
    """

    tensors: tuple[str, ...]
    key: str | None = None
    default: bool = True


NORM_BIASES = Biases(("output_norm", "attn_norm", "ffn_norm"))


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
        attention_biases: Biases of the attention projections that the architecture reads: ``none``, those
            that the model has (``stored``), or ``all`` that the family can have.
        biases: Biases outside the attention projections, by the key that turns them on.
        is_interleaved: Whether its rotary positions turn neighbouring features, so that rows of queries
            and keys change places.
        is_tied: Whether embeddings are tied where the configuration does not say.
        shares_embeddings: Whether it takes the embeddings for the output where that is not stored; else
            they are stored twice.
        has_output: Whether it can have an output of its own.
        rope_types: Kinds of rotary positions that it computes as transformers does.
        windows: When ``sliding_window`` counts: ``always``, ``asked`` (``use_sliding_window``) or ``never``.
        default_window: ``sliding_window`` where the configuration does not say.
        has_own_width: Whether heads together may be wider or narrower than the hidden states.
        instead: Another architecture that holds the model where they are and this one does not allow it.
    """

    architecture: str
    norm_key: str | None = "rms_norm_eps"
    norm: Literal["rms", "layer"] = "rms"
    activations: tuple[str, ...] = ("silu",)
    tensors: Mapping[str, Shape] = field(default_factory=lambda: SHAPES)
    attention_biases: Literal["none", "stored", "all"] = "none"
    biases: tuple[Biases, ...] = ()
    is_interleaved: bool = False
    is_tied: bool = False
    shares_embeddings: bool = True
    has_output: bool = True
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    windows: Literal["always", "asked", "never"] = "never"
    default_window: int | None = None
    has_own_width: bool = True
    instead: RuntimeFamily | None = None
