"""The form of the generated tables in `native_tables`: the facts in which a decoder differs from Llama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gqkva_convert.architectures.llama import LLAMA
from gqkva_convert.architectures.schema import (
    HEADS,
    HIDDEN_OVER_HEADS,
    NEVER,
    Bias,
    Family,
    HeadNorm,
    Key,
    Projection,
    Quotient,
    Role,
    Rotary,
    Span,
    separate,
)

HEAD_DIM = Key("head_dim", HIDDEN_OVER_HEADS)
HALF = Rotary("half")
_BLOCK = "layers.{layer}.self_attn."
_GAIN = LLAMA.attention[0].input_gain


def native(
    model_type: str,
    stem: str,
    *,
    config: str | None = None,
    tasks: tuple[str, ...] = ("CausalLM",),
    key_value_heads: int | None = None,
    head_dim: Key | Quotient = HEAD_DIM,
    block: str = _BLOCK,
    names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
    fused: str | None = None,
    bias: Bias = NEVER,
    output_bias: Bias = NEVER,
    rotary: Rotary | None = HALF,
    norm: Span | None = None,
    norms: tuple[str, str] = ("q_norm", "k_norm"),
    norm_key: str | None = None,
    gain: str | None = _GAIN,
    gain_offset: float = 0.0,
    prefixes: tuple[str, ...] = ("model.", ""),
    top: tuple[str, ...] = ("embed_tokens.weight", "norm.weight"),
    layer: tuple[str, ...] = ("input_layernorm.weight", "mlp.*", "post_attention_layernorm.weight"),
    heads: tuple[str, ...] = (),
    is_tied: bool = True,
    ties_by_default: bool = False,
    keys: tuple[str, ...] = (),
    values: Mapping[str, tuple[object, ...]] | None = None,
) -> Family:
    """Return the table of a decoder whose key/value heads stock transformers counts itself.

    Args:
        model_type: As `Family` has it, like ``stem``, ``tasks``, ``prefixes`` and ``heads``.
        stem: Beginning of its class names.
        config: Its configuration class, where that does not begin with the stem.
        tasks: Tasks that it has classes for.
        key_value_heads: Key/value heads where the configuration names none; None for one an attention head.
        head_dim: Features per head.
        block: Beginning of the names of its projections.
        names: Query, key, value and output projection.
        fused: Projection that holds all queries, then all keys, then all values, in place of three.
        bias: Whether queries, keys and values have biases.
        output_bias: Whether the output projection has one.
        rotary: Rotary positions.
        norm: Span of the norms on queries and keys, if there are any.
        norms: Names of the two.
        norm_key: Key that turns them on.
        gain: Gain of the norm before queries, keys and values.
        gain_offset: What the model adds to it.
        prefixes: Prefixes of the base model's tensors.
        top: Its tensors outside layers.
        layer: Tensors of a layer that hold no heads.
        heads: Tensors of task heads that Llama lacks.
        is_tied: Whether its output head can be its embedding.
        ties_by_default: Whether it is where the configuration does not say.
        keys: Keys about attention that a conversion need not change.
        values: Keys of which only some values are supported.
    """
    layers = block.partition("{layer}.")
    projections = separate(block, *names, bias, output_bias)
    if fused is not None:
        roles: tuple[Role, ...] = ("query", "key", "value")
        projections = (Projection(f"{block}{fused}", roles, bias, packing="stacked"), projections[3])
    kinds: tuple[tuple[str, Role], ...] = ((norms[0], "query"), (norms[1], "key"))
    facts: dict[str, Any] = {
        "projections": projections,
        "head_dim": head_dim,
        "num_key_value_heads": Key("num_key_value_heads", key_value_heads or HEADS, null=HEADS),
        "rotary": rotary,
        "input_gain": gain,
        "gain_offset": gain_offset,
    }
    if norm is not None:
        facts["norms"] = tuple(
            HeadNorm(f"{block}{name}.weight", role, norm, key=norm_key) for name, role in kinds
        )
    return replace(
        LLAMA,
        model_type=model_type,
        stem=stem,
        own_config=config,
        tasks=tasks,
        prefixes=prefixes,
        attention=(replace(LLAMA.attention[0], **facts),),
        others=(*top, *(f"{layers[0]}{layers[1]}{name}" for name in layer)),
        heads={**LLAMA.heads, "": heads} if heads else LLAMA.heads,
        tied=LLAMA.tied if is_tied else (),
        ties_by_default=ties_by_default,
        config_keys=frozenset(keys),
        config_values=values or {},
        gguf=None,
        compared_in=(),
        is_derived=True,
    )
