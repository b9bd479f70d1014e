"""What a family table can say: facts about files and configurations, as data.

Names describe tensors as stored on disk. ``{layer}`` means a layer's number, ``{head}`` a head's,
``*`` anything inside a module that holds no heads. Names of the base model are written
without its prefix, because the same tensors are stored with it (`BertForMaskedLM`) and without it
(`BertModel`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from gqkva_convert.architectures.gguf import RuntimeFamily

Role = Literal["query", "key", "value", "output"]
Span = Literal["shared", "per_head", "all_heads"]


@lru_cache(maxsize=4096)
def name_pattern(template: str) -> re.Pattern[str]:
    """Return the pattern of the names that a template stands for; its groups are numbers of layers."""
    text = re.escape(template)
    return re.compile(text.replace(re.escape("{layer}"), r"(\d+)").replace(re.escape("*"), ".+"))


@dataclass(frozen=True)
class Key:
    """A number in ``config.json``: its key, and what transformers assumes where the key is absent.

    Attributes:
        name: Key, dotted inside nested configurations (``text_config.num_attention_heads``).
        default: Where the key is absent: a number, another key, or a quotient of two.
        null: Where the key is null, if that means something else than its absence.
    """

    name: str
    default: int | Key | Quotient | None = None
    null: Key | None = None


@dataclass(frozen=True)
class Quotient:
    """One configuration number divided by another, such as hidden size by heads."""

    above: Key
    below: Key


LAYERS, HEADS = Key("num_hidden_layers"), Key("num_attention_heads")
HIDDEN_OVER_HEADS = Quotient(Key("hidden_size"), HEADS)


@dataclass(frozen=True)
class Bias:
    """Whether a projection has a bias: always, never, or as a configuration key says."""

    present: bool
    key: str | None = None


ALWAYS = Bias(True)
NEVER = Bias(False)


@dataclass(frozen=True)
class Projection:
    """One module of an attention block that maps to or from heads.

    Attributes:
        name: Module as stored on disk; its tensors are ``<name>.weight`` and ``<name>.bias``.
        roles: What it holds: one role, or query, key and value together.
        bias: Whether it has a bias. An output projection's bias has no head axis.
        packing: ``separate`` (one role); ``stacked``: all of q, then k, then v; ``per_head``: q0 k0 v0,
            q1 k1 v1, ...
        head_axis: Axis of the weight that runs over heads: 0 for `nn.Linear`'s outputs, 1 for its
            inputs (an output projection) and for GPT-2's transposed `Conv1D`.
    """

    name: str
    roles: tuple[Role, ...]
    bias: Bias
    packing: Literal["separate", "stacked", "per_head"] = "separate"
    head_axis: Literal[0, 1] = 0


def separate(
    block: str, query: str, key: str, value: str, output: str, bias: Bias, output_bias: Bias | None = None
) -> tuple[Projection, ...]:
    """Return projections of one role each, whose names all begin with ``block``."""
    roles: tuple[Role, ...] = ("query", "key", "value")
    inputs = zip((query, key, value), roles, strict=True)
    output_projection = Projection(f"{block}{output}", ("output",), output_bias or bias, head_axis=1)
    return (*(Projection(f"{block}{name}", (role,), bias) for name, role in inputs), output_projection)


def recomputed_rotary(block: str) -> dict[str, str]:
    """Return the buffers of rotary positions that old checkpoints hold, and why they are dropped.

    Frequencies and cached sines and cosines were saved in each attention block, later in the model.
    """
    names = ("inv_freq", "cos_cached", "sin_cached")
    return {
        f"{place}rotary_emb.{name}": "rotary positions, recomputed by transformers"
        for place in ("", block)
        for name in names
    }


@dataclass(frozen=True)
class HeadNorm:
    """A norm on queries or keys.

    Attributes:
        name: Tensor as stored on disk.
        role: ``query`` or ``key``.
        span: ``shared``: one gain for every head. ``per_head``: a tensor a head, ``{head}`` in its name.
            ``all_heads``: one gain over all heads together, and a statistic over all heads together, so
            that it must be merged with them.
        key: Configuration key that turns the norm on, or None where the family always has it.
        ignores_head_dim: Whether stock transformers makes it hidden size / heads wide, whatever ``head_dim``
            says.
        is_centred: Whether it takes the mean away first (a layer norm), so that features may not change sign
            one by one.
    """

    name: str
    role: Role
    span: Span
    key: str | None = None
    ignores_head_dim: bool = False
    is_centred: bool = False


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding.

    Attributes:
        style: ``half``: feature i turns with i + d/2. ``interleaved``: 2i turns with 2i + 1.
        fraction: Share of ``head_dim`` that turns, where the configuration does not say
            (``rope_parameters.partial_rotary_factor``, ``partial_rotary_factor`` or ``rotary_pct``).
    """

    style: Literal["half", "interleaved"]
    fraction: float = 1.0


@dataclass(frozen=True)
class HeadBias:
    """A position bias with one column a head, bound to the head's index.

    Attributes:
        name: Tensor ``(buckets, heads)``.
        layers: Layers that store it; the layers after them use the same table.
    """

    name: str
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Attention:
    """One kind of attention block of a family.

    Attributes:
        kind: Its name, unique in the family: ``self``, ``encoder``, ``decoder``, ``cross``...
        projections: Its projections; together they hold query, key, value and output once each.
        cache: KV cache in generation: ``self`` grows with every token, ``cross`` holds the encoder's
            positions, ``none`` for encoders.
        is_causal: Whether a position attends to itself and earlier positions only.
        num_layers: Number of such blocks.
        num_attention_heads: Attention heads in each.
        head_dim: Features per head.
        num_key_value_heads: Key of fewer key/value heads; None if stock transformers cannot read fewer.
        rotary: Rotary positions, if any.
        norms: Norms on queries and keys.
        head_bias: Position bias bound to a head's index: such heads keep their order.
        input_gain: Gain of the norm before queries, keys and values, as stored on disk; its squares
            are the inputs' second moments as far as weights alone can tell.
        gain_offset: What the model adds to a stored gain.
        modules: Pattern for the end of the names of its modules, with the layer's number as its group, where
            transformers gives modules other names than stored tensors.
    """

    kind: str
    projections: tuple[Projection, ...]
    cache: Literal["self", "cross", "none"]
    is_causal: bool
    num_layers: Key = LAYERS
    num_attention_heads: Key = HEADS
    head_dim: Key | Quotient = HIDDEN_OVER_HEADS
    num_key_value_heads: Key | None = None
    rotary: Rotary | None = None
    norms: tuple[HeadNorm, ...] = ()
    head_bias: HeadBias | None = None
    input_gain: str | None = None
    gain_offset: float = 0.0
    modules: str | None = None


@dataclass(frozen=True)
class Inputs:
    """The transformers classes that make a family's inputs, as transformers' own tables name them.

    Attributes:
        tokenizer: Tokenizer; None for a family without text, or whose tokenizers state their class.
        image_processor: Image processor, if it reads images.
        feature_extractor: Feature extractor, if it reads sound.
        processor: Processor that joins two of these, if there is one.
    """

    tokenizer: str | None = None
    image_processor: str | None = None
    feature_extractor: str | None = None
    processor: str | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """One ``model_type``: every fact that the package needs of a family.

    Attributes:
        model_type: As in ``config.json``.
        stem: Beginning of its class names: ``<stem>Config``, ``<stem>Model``, ``<stem>ForCausalLM``.
        usual: Rest of the name of the class that is meant where a configuration names none.
        tasks: Tasks whose class is ``<stem>For<task>``, given by ``AutoModelFor<task>``.
        other_tasks: For tasks whose classes have other names the rests of these, the usual class first.
        inputs: Classes that make its inputs.
        first_position: Number of the first token's row in the table of positions, which
            ``max_position_embeddings`` counts: a sequence is that many tokens shorter.
        any_image_size: Whether it fits its positions to images of any size.
        decoder_start: Token that a decoder begins with; None for a family without an encoder.
        prefixes: Prefixes under which the base model's tensors are stored, the usual one first.
        attention: Its attention blocks.
        others: Base-model tensors that hold no heads; copied.
        heads: Tensors of task heads, written without prefix; copied. They stand under the rest of the name of
            the class that needs all of them; those that no class needs under the empty name.
        dropped: Tensors of old checkpoints that transformers recomputes or ignores, and why.
        buffers: Floating-point tensors of task heads that are no parameters.
        tied: ``(copy, original)`` pairs that are one tensor when ``tie_word_embeddings`` is on.
        ties_by_default: Whether it is on where the configuration does not say.
        always_tied: Copies that are tied even where it is off.
        config_keys: Keys about attention that transformers reads and a conversion need not change.
        config_values: Keys for which only some values are supported.
        has_published_code: Whether its authors' repositories name code of their own that became transformers'
            class, under the names of transformers' files: it computes what the class computes.
        parts: Classes that store only some kinds of attention, and which kinds.
        gguf: The family in llama.cpp; None where no GGUF file is written.
        compared_in: Other runtimes in which tests compare stock models of this type with transformers.
        own_config: Name of its configuration class, where that does not begin as its other classes do.
        is_derived: Whether the table was made by `derivation`, which then proves it on each configuration
            before a conversion.
    """

    model_type: str
    stem: str
    usual: str
    tasks: tuple[str, ...]
    other_tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    inputs: Inputs
    first_position: int
    any_image_size: bool = False
    decoder_start: Literal["pad", "eos"] | None
    prefixes: tuple[str, ...]
    attention: tuple[Attention, ...]
    others: tuple[str, ...]
    heads: Mapping[str, tuple[str, ...]]
    dropped: Mapping[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    ties_by_default: bool = True
    always_tied: tuple[str, ...] = ()
    config_keys: frozenset[str] = frozenset()
    config_values: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    has_published_code: bool = False
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gguf: RuntimeFamily | None
    compared_in: tuple[str, ...] = ()
    own_config: str | None = None
    is_derived: bool = False

    @property
    def architecture(self) -> str:
        """Return the class that is meant where a configuration names none."""
        return f"{self.stem}{self.usual}"

    @property
    def config_class(self) -> str:
        """Return the name of the configuration class."""
        return self.own_config or f"{self.stem}Config"

    @property
    def auto_classes(self) -> dict[str, tuple[str, ...]]:
        """Return the classes that each Auto class may give, the usual one first; Auto classes by name."""
        rests: dict[str, tuple[str, ...]] = {"": ("Model",)}
        rests |= {f"For{task}": (f"For{task}",) for task in self.tasks}
        rests |= {f"For{task}": names for task, names in self.other_tasks.items()}
        return {
            f"AutoModel{auto}": tuple(f"{self.stem}{rest}" for rest in rests[auto]) for auto in sorted(rests)
        }

    def known_heads(self) -> tuple[str, ...]:
        """Return the tensors of the task heads of all classes."""
        return tuple(dict.fromkeys(name for names in self.heads.values() for name in names))

    @property
    def is_native(self) -> bool:
        """Return whether stock transformers can express fewer key/value heads in every attention block."""
        return all(block.num_key_value_heads is not None for block in self.attention)

    @property
    def is_encoder(self) -> bool:
        """Return whether every position attends to every other one, in all attention blocks."""
        return not any(block.is_causal for block in self.attention)

    def part(self, architecture: str) -> Family:
        """Return the family with only the kinds of attention that a class stores.

        T5's encoder alone and CLIP's image classifier keep the configuration of the whole model.
        """
        kinds = self.parts.get(architecture)
        if kinds is None:
            return self
        return replace(self, attention=tuple(block for block in self.attention if block.kind in kinds))
