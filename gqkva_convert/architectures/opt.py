"""OPT."""

from gqkva_convert.architectures.schema import Attention, Bias, Family, Inputs, separate

_BIAS = Bias(True, "enable_bias")

OPT = Family(
    model_type="opt",
    stem="OPT",
    usual="ForCausalLM",
    tasks=("CausalLM", "QuestionAnswering", "SequenceClassification"),
    inputs=Inputs("GPT2Tokenizer"),
    # Its positions begin at 2, too, but in a table of two rows more than `max_position_embeddings`.
    first_position=0,
    decoder_start=None,
    # opt-350m and a few other Hub checkpoints store the decoder without the outer "model.".
    prefixes=("model.decoder.", "decoder.", ""),
    attention=(
        Attention(
            kind="self",
            projections=separate(
                "layers.{layer}.self_attn.", "q_proj", "k_proj", "v_proj", "out_proj", _BIAS
            ),
            cache="self",
            is_causal=True,
        ),
    ),
    others=(
        "embed_tokens.weight",
        "embed_positions.weight",
        "project_in.weight",
        "project_out.weight",
        "final_layer_norm.*",
        "layers.{layer}.self_attn_layer_norm.*",
        "layers.{layer}.final_layer_norm.*",
        "layers.{layer}.fc1.*",
        "layers.{layer}.fc2.*",
    ),
    heads={
        "ForCausalLM": ("lm_head.weight",),
        "ForQuestionAnswering": ("qa_outputs.*",),
        "ForSequenceClassification": ("score.weight",),
    },
    tied=(("lm_head.weight", "embed_tokens.weight"),),
    gguf=None,
)
