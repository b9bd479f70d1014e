"""T5: encoder, decoder and cross-attention, with a relative position bias for each head."""

from typing import Literal

from gqkva_convert.architectures.schema import NEVER, Attention, Family, HeadBias, Inputs, Key, separate

_STACKS = ("encoder", "decoder")
_LAYERS = Key("num_layers", 6)
_DECODER_LAYERS = Key("num_decoder_layers", _LAYERS, null=_LAYERS)


def _attention(kind: str, module: str, layers: Key, cache: Literal["self", "cross", "none"]) -> Attention:
    """Return an attention block; self-attention adds a relative position bias."""
    return Attention(
        kind=kind,
        projections=separate(f"{module}.", "q", "k", "v", "o", NEVER),
        num_layers=layers,
        num_attention_heads=Key("num_heads", 8),
        # heads * d_kv need not be d_model: T5-3B has 32 heads of 128 for a width of 1024.
        head_dim=Key("d_kv", 64),
        cache=cache,
        is_causal=cache == "self",
        # Only the first layer stores the table; every layer adds it.
        head_bias=None if cache == "cross" else HeadBias(f"{module}.relative_attention_bias.weight", (0,)),
    )


T5 = Family(
    model_type="t5",
    stem="T5",
    usual="ForConditionalGeneration",
    tasks=("QuestionAnswering", "SequenceClassification", "TokenClassification"),
    other_tasks={
        **dict.fromkeys(("PreTraining", "Seq2SeqLM"), ("ForConditionalGeneration",)),
        "TextEncoding": ("EncoderModel",),
    },
    inputs=Inputs("T5Tokenizer"),
    first_position=0,
    decoder_start="pad",
    # Sequence and token classification store the base model as "transformer.".
    prefixes=("", "transformer."),
    attention=(
        _attention("encoder", "encoder.block.{layer}.layer.0.SelfAttention", _LAYERS, "none"),
        _attention("decoder", "decoder.block.{layer}.layer.0.SelfAttention", _DECODER_LAYERS, "self"),
        _attention("cross", "decoder.block.{layer}.layer.1.EncDecAttention", _DECODER_LAYERS, "cross"),
    ),
    others=(
        "shared.weight",
        *(f"{stack}.{name}.weight" for stack in _STACKS for name in ("embed_tokens", "final_layer_norm")),
        *(f"{stack}.block.{{layer}}.layer.{part}.layer_norm.weight" for stack in _STACKS for part in (0, 1)),
        "encoder.block.{layer}.layer.1.DenseReluDense.*",
        "decoder.block.{layer}.layer.2.layer_norm.weight",
        "decoder.block.{layer}.layer.2.DenseReluDense.*",
    ),
    heads={
        "ForConditionalGeneration": ("lm_head.weight",),
        "ForQuestionAnswering": ("qa_outputs.*",),
        "ForSequenceClassification": ("classification_head.*",),
        "ForTokenClassification": ("classifier.*",),
    },
    parts={"T5EncoderModel": ("encoder",), "T5ForTokenClassification": ("encoder",)},
    dropped={
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": (
            "left over in the original checkpoints; cross-attention adds no bias"
        )
    },
    tied=(
        *((f"{stack}.embed_tokens.weight", "shared.weight") for stack in _STACKS),
        ("lm_head.weight", "shared.weight"),
    ),
    always_tied=tuple(f"{stack}.embed_tokens.weight" for stack in _STACKS),
    config_keys=frozenset({"relative_attention_num_buckets", "relative_attention_max_distance"}),
    gguf=None,
)
