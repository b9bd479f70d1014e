"""GPT-NeoX and Pythia: query, key and value of each head side by side in one projection."""

from gqkva_convert.architectures.schema import (
    Attention,
    Bias,
    Family,
    Inputs,
    Projection,
    Rotary,
    recomputed_rotary,
)

_BIAS = Bias(True, "attention_bias")

GPT_NEOX = Family(
    model_type="gpt_neox",
    stem="GPTNeoX",
    usual="ForCausalLM",
    tasks=("CausalLM", "QuestionAnswering", "SequenceClassification", "TokenClassification"),
    inputs=Inputs("GPTNeoXTokenizer"),
    first_position=0,
    decoder_start=None,
    prefixes=("gpt_neox.", ""),
    attention=(
        Attention(
            kind="self",
            projections=(
                Projection(
                    "layers.{layer}.attention.query_key_value",
                    ("query", "key", "value"),
                    _BIAS,
                    packing="per_head",
                ),
                Projection("layers.{layer}.attention.dense", ("output",), _BIAS, head_axis=1),
            ),
            cache="self",
            is_causal=True,
            rotary=Rotary("half", 0.25),
        ),
    ),
    others=(
        "embed_in.weight",
        "final_layer_norm.*",
        "layers.{layer}.input_layernorm.*",
        "layers.{layer}.post_attention_layernorm.*",
        "layers.{layer}.mlp.*",
    ),
    heads={
        "ForCausalLM": ("embed_out.weight",),
        "ForQuestionAnswering": ("qa_outputs.*",),
        "ForSequenceClassification": ("score.weight",),
        "ForTokenClassification": ("classifier.*",),
    },
    dropped={
        "layers.{layer}.attention.bias": "causal mask, recomputed by transformers",
        "layers.{layer}.attention.masked_bias": "mask constant, recomputed by transformers",
        **recomputed_rotary("layers.{layer}.attention."),
    },
    tied=(("embed_out.weight", "embed_in.weight"),),
    ties_by_default=False,
    config_keys=frozenset({"rotary_pct", "rotary_emb_base"}),
    gguf=None,
)
