"""GPT-2: query, key and value in one transposed projection."""

from gqkva_convert.architectures.schema import ALWAYS, Attention, Family, Inputs, Key, Projection, Quotient

GPT2 = Family(
    model_type="gpt2",
    stem="GPT2",
    usual="LMHeadModel",
    tasks=("QuestionAnswering", "SequenceClassification", "TokenClassification"),
    other_tasks=dict.fromkeys(("CausalLM", "PreTraining"), ("LMHeadModel",)),
    inputs=Inputs("GPT2Tokenizer"),
    first_position=0,
    decoder_start=None,
    prefixes=("transformer.", ""),
    attention=(
        Attention(
            kind="self",
            projections=(
                # Conv1D stores (in, out), so c_attn has its heads along axis 1, c_proj along 0.
                Projection(
                    "h.{layer}.attn.c_attn",
                    ("query", "key", "value"),
                    ALWAYS,
                    packing="stacked",
                    head_axis=1,
                ),
                Projection("h.{layer}.attn.c_proj", ("output",), ALWAYS, head_axis=0),
            ),
            num_layers=Key("n_layer", 12),
            num_attention_heads=Key("n_head", 12),
            head_dim=Quotient(Key("n_embd", 768), Key("n_head", 12)),
            cache="self",
            is_causal=True,
        ),
    ),
    others=(
        "wte.weight",
        "wpe.weight",
        "h.{layer}.ln_1.*",
        "h.{layer}.ln_2.*",
        "h.{layer}.mlp.*",
        "ln_f.*",
    ),
    heads={
        "LMHeadModel": ("lm_head.weight",),
        "ForQuestionAnswering": ("qa_outputs.*",),
        "ForSequenceClassification": ("score.weight",),
        "ForTokenClassification": ("classifier.*",),
        "DoubleHeadsModel": ("lm_head.weight", "multiple_choice_head.*"),
    },
    dropped={
        "h.{layer}.attn.bias": "causal mask, recomputed by transformers",
        "h.{layer}.attn.masked_bias": "mask constant, recomputed by transformers",
    },
    tied=(("lm_head.weight", "wte.weight"),),
    config_keys=frozenset(
        {"reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx", "scale_attn_weights"}
    ),
    config_values={"add_cross_attention": (False,)},
    gguf=None,
)
