"""BART and Whisper: encoder, decoder and cross-attention with learned or fixed positions."""

from dataclasses import replace

from gqkva_convert.architectures.schema import (
    ALWAYS,
    NEVER,
    Attention,
    Family,
    Inputs,
    Key,
    Quotient,
    moved,
    separate,
)

ENCODER = Attention(
    kind="encoder",
    projections=separate(
        "encoder.layers.{layer}.self_attn.", "q_proj", "k_proj", "v_proj", "out_proj", ALWAYS
    ),
    num_layers=Key("encoder_layers"),
    num_attention_heads=Key("encoder_attention_heads"),
    head_dim=Quotient(Key("d_model"), Key("encoder_attention_heads")),
    num_key_value_heads=None,
    cache="none",
    is_causal=False,
)


DECODER = replace(
    ENCODER,
    kind="decoder",
    projections=moved(ENCODER.projections, "encoder.", "decoder."),
    num_layers=Key("decoder_layers"),
    num_attention_heads=Key("decoder_attention_heads"),
    head_dim=Quotient(Key("d_model"), Key("decoder_attention_heads")),
    cache="self",
    is_causal=True,
)

CROSS = replace(
    DECODER,
    kind="cross",
    projections=moved(DECODER.projections, "self_attn", "encoder_attn"),
    cache="cross",
    is_causal=False,
)

BART = Family(
    model_type="bart",
    stem="Bart",
    usual="ForConditionalGeneration",
    tasks=("CausalLM", "QuestionAnswering", "SequenceClassification"),
    other_tasks=dict.fromkeys(("MaskedLM", "PreTraining", "Seq2SeqLM"), ("ForConditionalGeneration",)),
    inputs=Inputs("RobertaTokenizer"),
    # Its positions begin at 2, too, but in a table of two rows more than `max_position_embeddings`.
    first_position=0,
    decoder_start="eos",
    prefixes=("model.", ""),
    attention=(ENCODER, DECODER, CROSS),
    others=(
        "shared.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "encoder.embed_positions.weight",
        "decoder.embed_positions.weight",
        "encoder.layernorm_embedding.*",
        "decoder.layernorm_embedding.*",
        "encoder.layers.{layer}.self_attn_layer_norm.*",
        "encoder.layers.{layer}.final_layer_norm.*",
        "encoder.layers.{layer}.fc1.*",
        "encoder.layers.{layer}.fc2.*",
        "decoder.layers.{layer}.self_attn_layer_norm.*",
        "decoder.layers.{layer}.encoder_attn_layer_norm.*",
        "decoder.layers.{layer}.final_layer_norm.*",
        "decoder.layers.{layer}.fc1.*",
        "decoder.layers.{layer}.fc2.*",
    ),
    heads=("final_logits_bias", "lm_head.weight", "classification_head.*", "qa_outputs.*"),
    parts={"BartForCausalLM": ("decoder", "cross")},
    dropped={
        "encoder.version": "a version mark of the first checkpoints",
        "decoder.version": "a version mark of the first checkpoints",
    },
    tied=(
        ("encoder.embed_tokens.weight", "shared.weight"),
        ("decoder.embed_tokens.weight", "shared.weight"),
        ("lm_head.weight", "shared.weight"),
    ),
    gguf=None,
)


def _without_key_bias(source: Attention) -> Attention:
    return replace(
        source,
        projections=tuple(replace(p, bias=NEVER if "key" in p.roles else ALWAYS) for p in source.projections),
    )


WHISPER = replace(
    BART,
    model_type="whisper",
    stem="Whisper",
    tasks=("AudioClassification", "CausalLM"),
    other_tasks={"SpeechSeq2Seq": ("ForConditionalGeneration",)},
    inputs=Inputs(
        "WhisperTokenizer", feature_extractor="WhisperFeatureExtractor", processor="WhisperProcessor"
    ),
    attention=tuple(_without_key_bias(block) for block in (ENCODER, DECODER, CROSS)),
    others=(
        *(name for name in BART.others if "layernorm_embedding" not in name and "shared" not in name),
        "encoder.conv1.*",
        "encoder.conv2.*",
        "encoder.layer_norm.*",
        "decoder.layer_norm.*",
    ),
    heads=("proj_out.weight", "projector.*", "classifier.*", "layer_weights"),
    parts={"WhisperForAudioClassification": ("encoder",), "WhisperForCausalLM": ("decoder", "cross")},
    tied=(("proj_out.weight", "decoder.embed_tokens.weight"),),
)
