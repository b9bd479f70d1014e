"""BART and Whisper: encoder, decoder and cross-attention with learned or fixed positions."""

from dataclasses import replace
from typing import Any

from gqkva_convert.architectures.schema import (
    ALWAYS,
    NEVER,
    Attention,
    Family,
    Inputs,
    Key,
    Quotient,
    separate,
)


def _attention(stack: str, module: str = "self_attn", **facts: Any) -> Attention:
    """Return an attention block of the encoder's or the decoder's layers."""
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    heads = Key(f"{stack}_attention_heads")
    return Attention(
        projections=separate(f"{stack}.layers.{{layer}}.{module}.", *names, ALWAYS),
        num_layers=Key(f"{stack}_layers"),
        num_attention_heads=heads,
        head_dim=Quotient(Key("d_model"), heads),
        **facts,
    )


_ATTENTION = (
    _attention("encoder", kind="encoder", cache="none", is_causal=False),
    _attention("decoder", kind="decoder", cache="self", is_causal=True),
    _attention("decoder", "encoder_attn", kind="cross", cache="cross", is_causal=False),
)
_STACKS = ("encoder", "decoder")
_IN_LAYER = ("self_attn_layer_norm", "final_layer_norm", "fc1", "fc2")

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
    attention=_ATTENTION,
    others=(
        "shared.weight",
        *(f"{stack}.{name}.weight" for stack in _STACKS for name in ("embed_tokens", "embed_positions")),
        *(f"{stack}.layernorm_embedding.*" for stack in _STACKS),
        *(f"{stack}.layers.{{layer}}.{name}.*" for stack in _STACKS for name in _IN_LAYER),
        "decoder.layers.{layer}.encoder_attn_layer_norm.*",
    ),
    heads={
        **dict.fromkeys(("ForConditionalGeneration", "ForCausalLM"), ("lm_head.weight",)),
        "ForQuestionAnswering": ("qa_outputs.*",),
        "ForSequenceClassification": ("classification_head.*",),
        "": ("final_logits_bias",),
    },
    buffers=("final_logits_bias",),
    parts={"BartForCausalLM": ("decoder", "cross")},
    dropped={f"{stack}.version": "a version mark of the first checkpoints" for stack in _STACKS},
    tied=(
        *((f"{stack}.embed_tokens.weight", "shared.weight") for stack in _STACKS),
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
    attention=tuple(_without_key_bias(block) for block in _ATTENTION),
    others=(
        *(name for name in BART.others if "layernorm_embedding" not in name and "shared" not in name),
        "encoder.conv1.*",
        "encoder.conv2.*",
        "encoder.layer_norm.*",
        "decoder.layer_norm.*",
    ),
    heads={
        **dict.fromkeys(("ForConditionalGeneration", "ForCausalLM"), ("proj_out.weight",)),
        "ForAudioClassification": ("projector.*", "classifier.*"),
        "": ("layer_weights",),
    },
    buffers=(),
    parts={"WhisperForAudioClassification": ("encoder",), "WhisperForCausalLM": ("decoder", "cross")},
    tied=(("proj_out.weight", "decoder.embed_tokens.weight"),),
)
