"""BERT, the families that store their tensors alike, and DistilBERT."""

from dataclasses import replace

from gqkva_convert.architectures.schema import ALWAYS, Attention, Family, Inputs, Key, Quotient, separate

ATTENTION = Attention(
    kind="self",
    projections=separate(
        "encoder.layer.{layer}.attention.", "self.query", "self.key", "self.value", "output.dense", ALWAYS
    ),
    cache="none",
    is_causal=False,
)

_TASKS = ("MaskedLM", "MultipleChoice", "QuestionAnswering", "SequenceClassification", "TokenClassification")

_CLASSIFIERS = ("ForMultipleChoice", "ForSequenceClassification", "ForTokenClassification")
_ONE_LAYER = ("classifier.weight", "classifier.bias")
_TWO_LAYERS = ("classifier.dense.*", "classifier.out_proj.*")

BERT = Family(
    model_type="bert",
    stem="Bert",
    usual="ForMaskedLM",
    tasks=(*_TASKS, "NextSentencePrediction", "PreTraining"),
    other_tasks={"CausalLM": ("LMHeadModel",), "TextEncoding": ("Model",)},
    inputs=Inputs("BertTokenizer"),
    first_position=0,
    decoder_start=None,
    prefixes=("bert.", ""),
    attention=(ATTENTION,),
    others=(
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
        # Old checkpoints spell the norm's tensors gamma and beta.
        "embeddings.LayerNorm.*",
        "encoder.layer.{layer}.attention.output.LayerNorm.*",
        "encoder.layer.{layer}.intermediate.dense.*",
        "encoder.layer.{layer}.output.*",
        "pooler.*",
    ),
    heads={
        **dict.fromkeys(("ForMaskedLM", "LMHeadModel"), ("cls.predictions.*",)),
        **dict.fromkeys(_CLASSIFIERS, ("classifier.*",)),
        "ForNextSentencePrediction": ("cls.seq_relationship.*",),
        "ForPreTraining": ("cls.predictions.*", "cls.seq_relationship.*"),
        "ForQuestionAnswering": ("qa_outputs.*",),
    },
    dropped={"embeddings.position_ids": "position numbers, recomputed by transformers"},
    tied=(
        ("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    # Two were written for a pooler that transformers does not have.
    config_keys=frozenset({"is_decoder", "pooler_num_attention_heads", "pooler_size_per_head"}),
    config_values={
        "position_embedding_type": ("absolute",),
        "add_cross_attention": (False,),
    },
    gguf=None,
)

ROBERTA = replace(
    BERT,
    model_type="roberta",
    stem="Roberta",
    tasks=(*_TASKS, "CausalLM"),
    other_tasks={"PreTraining": ("ForMaskedLM",), "TextEncoding": ("Model",)},
    inputs=Inputs("RobertaTokenizer"),
    # Tokens are counted from behind the padding token's number, which is 1.
    first_position=2,
    prefixes=("roberta.", ""),
    heads={
        **dict.fromkeys(("ForMaskedLM", "ForCausalLM"), ("lm_head.*",)),
        **dict.fromkeys(("ForMultipleChoice", "ForTokenClassification"), _ONE_LAYER),
        "ForSequenceClassification": _TWO_LAYERS,
        "ForQuestionAnswering": ("qa_outputs.*",),
    },
    tied=(
        ("lm_head.decoder.weight", "embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
)

XLM_ROBERTA = replace(
    ROBERTA,
    model_type="xlm-roberta",
    stem="XLMRoberta",
    inputs=Inputs("XLMRobertaTokenizer"),
)

CAMEMBERT = replace(
    ROBERTA,
    model_type="camembert",
    stem="Camembert",
    other_tasks={"PreTraining": ("ForMaskedLM",)},
    inputs=Inputs("CamembertTokenizer"),
)

ELECTRA = replace(
    BERT,
    model_type="electra",
    stem="Electra",
    tasks=(*_TASKS, "CausalLM", "PreTraining"),
    other_tasks={"TextEncoding": ("Model",)},
    prefixes=("electra.", ""),
    # Embeddings may be narrower than hidden states.
    others=(*(name for name in BERT.others if name != "pooler.*"), "embeddings_project.*"),
    heads={
        **dict.fromkeys(("ForMaskedLM", "ForCausalLM"), ("generator_predictions.*", "generator_lm_head.*")),
        "ForPreTraining": ("discriminator_predictions.*",),
        "ForMultipleChoice": (*_ONE_LAYER, "sequence_summary.*"),
        "ForSequenceClassification": _TWO_LAYERS,
        "ForTokenClassification": _ONE_LAYER,
        "ForQuestionAnswering": ("qa_outputs.*",),
    },
    tied=(("generator_lm_head.weight", "embeddings.word_embeddings.weight"),),
)

DISTILBERT = replace(
    BERT,
    model_type="distilbert",
    stem="DistilBert",
    tasks=_TASKS,
    other_tasks={"PreTraining": ("ForMaskedLM",), "TextEncoding": ("Model",)},
    prefixes=("distilbert.", ""),
    attention=(
        Attention(
            kind="self",
            projections=separate(
                "transformer.layer.{layer}.attention.", "q_lin", "k_lin", "v_lin", "out_lin", ALWAYS
            ),
            num_layers=Key("n_layers", 6),
            num_attention_heads=Key("n_heads", 12),
            head_dim=Quotient(Key("dim", 768), Key("n_heads", 12)),
            cache="none",
            is_causal=False,
        ),
    ),
    others=(
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.LayerNorm.*",
        "transformer.layer.{layer}.sa_layer_norm.*",
        "transformer.layer.{layer}.ffn.*",
        "transformer.layer.{layer}.output_layer_norm.*",
    ),
    heads={
        "ForMaskedLM": ("vocab_transform.*", "vocab_layer_norm.*", "vocab_projector.*"),
        **dict.fromkeys(
            ("ForMultipleChoice", "ForSequenceClassification"), ("pre_classifier.*", "classifier.*")
        ),
        "ForTokenClassification": ("classifier.*",),
        "ForQuestionAnswering": ("qa_outputs.*",),
    },
    tied=(("vocab_projector.weight", "embeddings.word_embeddings.weight"),),
    config_keys=frozenset(),
    config_values={},
)
