"""T5: encoder, decoder and cross-attention, with a relative position bias for each head."""

from dataclasses import replace

from gqkva_convert.architectures.schema import (
    NEVER,
    Attention,
    Family,
    HeadBias,
    Inputs,
    Key,
    moved,
    separate,
)

ENCODER = Attention(
    kind="encoder",
    projections=separate("encoder.block.{layer}.layer.0.SelfAttention.", "q", "k", "v", "o", NEVER),
    num_layers=Key("num_layers", 6),
    num_attention_heads=Key("num_heads", 8),
    # heads * d_kv need not be d_model: T5-3B has 32 heads of 128 for a width of 1024.
    head_dim=Key("d_kv", 64),
    num_key_value_heads=None,
    cache="none",
    is_causal=False,
    # Only the first layer stores the table; every layer adds it.
    head_bias=HeadBias("encoder.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight", (0,)),
)


DECODER = replace(
    ENCODER,
    kind="decoder",
    projections=moved(ENCODER.projections, "encoder.block", "decoder.block"),
    num_layers=Key("num_decoder_layers", Key("num_layers", 6), null=Key("num_layers", 6)),
    cache="self",
    is_causal=True,
    head_bias=HeadBias("decoder.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight", (0,)),
)

CROSS = replace(
    DECODER,
    kind="cross",
    projections=moved(DECODER.projections, "layer.0.SelfAttention", "layer.1.EncDecAttention"),
    cache="cross",
    is_causal=False,
    head_bias=None,
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
    attention=(ENCODER, DECODER, CROSS),
    others=(
        "shared.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "encoder.final_layer_norm.weight",
        "decoder.final_layer_norm.weight",
        "encoder.block.{layer}.layer.0.layer_norm.weight",
        "encoder.block.{layer}.layer.1.layer_norm.weight",
        "encoder.block.{layer}.layer.1.DenseReluDense.*",
        "decoder.block.{layer}.layer.0.layer_norm.weight",
        "decoder.block.{layer}.layer.1.layer_norm.weight",
        "decoder.block.{layer}.layer.2.layer_norm.weight",
        "decoder.block.{layer}.layer.2.DenseReluDense.*",
    ),
    heads=("lm_head.weight", "classification_head.*", "classifier.*", "qa_outputs.*"),
    parts={"T5EncoderModel": ("encoder",), "T5ForTokenClassification": ("encoder",)},
    dropped={
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": (
            "left over in the original checkpoints; cross-attention adds no bias"
        )
    },
    tied=(
        ("encoder.embed_tokens.weight", "shared.weight"),
        ("decoder.embed_tokens.weight", "shared.weight"),
        ("lm_head.weight", "shared.weight"),
    ),
    config_keys=frozenset({"relative_attention_num_buckets", "relative_attention_max_distance"}),
    gguf=None,
)
