"""Models around a text model: `text_config` beside other towers, which are copied."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gqkva_convert.architectures.schema import Attention, Bias, Family, Inputs, Key, Quotient

TEXT = "text_config"
# The output head, wherever it stands; some checkpoints leave it out where it is the embedding.
_HEADS = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")


@dataclass(frozen=True)
class Nested:
    """The facts of a model that holds a text model, beside the text model's own table.

    Attributes:
        model_type: As `Family` has it, like ``stem`` and ``usual``.
        stem: Beginning of its class names.
        usual: Rest of the name of the class that is meant where a configuration names none.
        text: Type of its text model where the configuration names none.
        prefixes: Prefixes of the text model's tensors: as transformers stores them, and as it holds them.
        others: Tensors outside the text model, of its towers above all; copied.
        keys: Keys about attention outside ``text_config`` that a conversion need not change.
    """

    model_type: str
    stem: str
    usual: str
    text: str
    prefixes: tuple[str, ...]
    others: tuple[str, ...]
    keys: tuple[str, ...] = ()


def around(outer: Nested, inner: Family) -> Family:
    """Return the table of a model with a text model inside.

    Args:
        outer: What it adds.
        inner: The text model's table.
    """
    return replace(
        inner,
        model_type=outer.model_type,
        stem=outer.stem,
        usual=outer.usual,
        own_config=None,
        tasks=(),
        inputs=Inputs(),
        prefixes=outer.prefixes,
        attention=tuple(_inside(attention, outer) for attention in inner.attention),
        heads={"": (*outer.others, *_HEADS)},
        tied=(),
        config_keys=inner.config_keys | frozenset(outer.keys),
        parts={},
        gguf=None,
        compared_in=(),
        is_derived=True,
    )


def _inside(attention: Attention, outer: Nested) -> Attention:
    """Return an attention block whose configuration is nested, and whose modules are the text model's."""
    module = attention.projections[0].name.rpartition(".")[0]
    before, _, rest = module.partition("{layer}")
    home = outer.prefixes[-1].rstrip(".").rpartition(".")[2]
    return replace(
        attention,
        projections=tuple(replace(one, bias=_bias(one.bias)) for one in attention.projections),
        num_layers=_key(attention.num_layers),
        num_attention_heads=_key(attention.num_attention_heads),
        head_dim=_number(attention.head_dim),
        num_key_value_heads=attention.num_key_value_heads and _key(attention.num_key_value_heads),
        norms=tuple(replace(norm, key=norm.key and f"{TEXT}.{norm.key}") for norm in attention.norms),
        modules=rf"{re.escape(f'{home}.{before}')}(\d+){re.escape(rest)}",
    )


def _bias(bias: Bias) -> Bias:
    return bias if bias.key is None else replace(bias, key=f"{TEXT}.{bias.key}")


def _key(key: Key) -> Key:
    default = key.default if isinstance(key.default, int) or key.default is None else _number(key.default)
    return Key(f"{TEXT}.{key.name}", default, None if key.null is None else _key(key.null))


def _number(number: Key | Quotient) -> Key | Quotient:
    if isinstance(number, Quotient):
        return Quotient(_key(number.above), _key(number.below))
    return _key(number)
