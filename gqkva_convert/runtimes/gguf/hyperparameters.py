"""A configuration as the keys that llama.cpp reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gqkva_convert.architectures.gguf import RuntimeFamily
from gqkva_convert.errors import FamilyError, NotExpressibleError
from gqkva_convert.plans.plan import Plan
from gqkva_convert.source.model import SourceModel
from gqkva_convert.source.rope import positive_number, rope_settings
from gqkva_convert.source.rotary import rotary_fraction, rotary_planes

# Parts of a kind of rotary positions that are written down; another one would be lost.
_YARN_KEYS = {
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "partial_rotary_factor",
}


@dataclass(frozen=True)
class Rope:
    """Rotary positions.

    Attributes:
        theta: Base of the frequencies.
        dimensions: Features of a head that turn.
        kind: ``default``, ``linear``, ``yarn`` or ``llama3``.
        settings: The rest of what the configuration says of them.
        factors: By what each plane's frequency is divided, for kinds that are written as such.
    """

    theta: float
    dimensions: int
    kind: str
    settings: dict[str, Any]
    factors: tuple[float, ...] = ()


def number(config: dict[str, Any], key: str) -> float:
    """Return a positive number of the configuration.

    Raises:
        FamilyError: It is missing or something else.
    """
    return positive_number(config.get(key), key)


def read_rope(model: SourceModel, family: RuntimeFamily, config: dict[str, Any]) -> Rope:
    """Read the rotary positions of the exported model.

    Raises:
        NotExpressibleError: llama.cpp has no such kind for the architecture.
    """
    settings = rope_settings(config)
    kind = settings["rope_type"]
    if kind not in family.rope_types:
        raise NotExpressibleError(
            f"config.json: rotary positions of the kind {kind!r} are not written for llama.cpp's "
            f"{family.architecture}; those that are: {', '.join(family.rope_types)}"
        )
    rotary = model.blocks[0].attention.rotary
    fraction = rotary_fraction(model.config, rotary.fraction if rotary else 1.0)
    if not 0 < fraction <= 1:
        raise FamilyError(
            f"config.json: partial_rotary_factor must be above 0 and at most 1, found {fraction}"
        )
    dimensions = 2 * len(rotary_planes(model, model.blocks[0]).first)
    if kind in ("linear", "yarn", "llama3"):
        positive_number(settings.get("factor"), f"factor of {kind} rotary positions")
    if kind == "yarn":
        lost = {key for key in settings.keys() - _YARN_KEYS if settings[key] is not None}
        if lost - ({"truncate"} if settings.get("truncate") is True else set()):
            raise NotExpressibleError(
                f"config.json: {', '.join(sorted(lost))} of yarn rotary positions has no key in GGUF"
            )
    factors = _llama3(settings, dimensions) if kind == "llama3" else ()
    return Rope(float(settings["rope_theta"]), dimensions, kind, settings, factors)


def _llama3(settings: dict[str, Any], dimensions: int) -> tuple[float, ...]:
    """Return the divisor of each plane's frequency in Llama 3.1, as transformers computes it.

    Written out, because transformers computes in float32 and its last bits would end up in the file.
    """
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, old = (positive_number(settings.get(name), f"{name} of llama3") for name in names)
    found = []
    for plane in range(dimensions // 2):
        wavelength = 2 * math.pi * float(settings["rope_theta"]) ** (2 * plane / dimensions)
        if wavelength < old / high:
            found.append(1.0)
        elif wavelength > old / low:
            found.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(found)


def context_length(family: RuntimeFamily, config: dict[str, Any]) -> tuple[int, int | None]:
    """Return the positions that the file names, and the window that limits them if one does.

    llama.cpp attends to all positions in these architectures, which is the same as long as none is outside
    the window.
    """
    positions = min(int(number(config, "max_position_embeddings")), 2**31 - 1)
    window = config.get("sliding_window", family.default_window)
    if family.windows == "never" or (family.windows == "asked" and not config.get("use_sliding_window")):
        window = None
    if not window or positive_number(window, "sliding_window") >= positions:
        return positions, None
    return int(window), int(window)


def check_config(family: RuntimeFamily, config: dict[str, Any]) -> None:
    """Refuse a configuration that the architecture would compute differently.

    Raises:
        NotExpressibleError: Says what differs.
    """
    keys = [key for key in ("hidden_activation", "hidden_act") if config.get(key) is not None]
    for key in keys:
        if config[key] not in family.activations:
            raise NotExpressibleError(
                f"config.json: {key} is {config[key]!r}, llama.cpp's {family.architecture} computes "
                f"{family.activations[0]} alone"
            )
    if config.get("use_bidirectional_attention"):
        raise NotExpressibleError(
            f"config.json: use_bidirectional_attention is on, llama.cpp's {family.architecture} is causal"
        )


def add_hyperparameters(
    writer: Any, family: RuntimeFamily, config: dict[str, Any], plan: Plan, rope: Rope
) -> None:
    """Give a `GGUFWriter` all keys of the model except those of tensors and tokenizer."""
    heads = [block.target.num_attention_heads for block in plan.blocks]
    keys = [block.target.num_key_heads for block in plan.blocks]
    head_dim = plan.blocks[0].target.head_dim
    writer.add_block_count(len(plan.blocks))
    writer.add_context_length(context_length(family, config)[0])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_head_count(heads[0])
    writer.add_head_count_kv(keys if len(set(keys)) > 1 else keys[0])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    epsilon = number(config, family.norm_key) if family.norm_key else 1e-5
    (writer.add_layer_norm_rms_eps if family.norm == "rms" else writer.add_layer_norm_eps)(epsilon)
    if family.architecture == "stablelm":
        writer.add_parallel_residual(bool(config.get("use_parallel_residual")))
    if config.get("clip_qkv"):
        writer.add_clamp_kqv(number(config, "clip_qkv"))
    if family.architecture == "phi3":
        writer.add_sliding_window(0)
    _add_rope(writer, config, rope)


def _add_rope(writer: Any, config: dict[str, Any], rope: Rope) -> None:
    writer.add_rope_dimension_count(rope.dimensions)
    writer.add_rope_freq_base(rope.theta)
    if rope.kind not in ("linear", "yarn"):
        return
    from gqkva_convert.runtimes.gguf.package import load_gguf

    settings, factor = rope.settings, float(rope.settings["factor"])
    writer.add_rope_scaling_type(load_gguf().RopeScalingType(rope.kind))
    writer.add_rope_scaling_factor(factor)
    if rope.kind == "linear":
        return
    old = settings.get("original_max_position_embeddings") or config["max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(int(positive_number(old, "original_max_position_embeddings")))
    if settings.get("attention_factor") is not None:
        # llama.cpp multiplies by its own factor, which is also transformers' default.
        own = 0.1 * math.log(factor) + 1.0
        attention = positive_number(settings["attention_factor"], "attention_factor")
        writer.add_rope_scaling_attn_factors(attention / own)
    for key, add in (
        ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
        ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
    ):
        if settings.get(key) is not None:
            add(positive_number(settings[key], key))
