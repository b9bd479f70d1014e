"""The families' stock classes and where their attention blocks stand in a model, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# Before the stock model type, so that it stays recognisable: "gqkva_bert".
MODEL_TYPE_PREFIX = "gqkva_"


@dataclass(frozen=True)
class BlockFacts:
    """What a family's attention blocks read besides the shapes of their projections.

    Attributes:
        counts: Attributes that hold a number of stored heads, and of which role.
        config_counts: The same for numbers read from the configuration.
        sizes: An attribute that holds the three projections' sizes.
        one_key_value_count: Whether the block can read only as many key heads as value heads.
    """

    counts: dict[str, str] = field(default_factory=dict)
    config_counts: dict[str, str] = field(default_factory=dict)
    sizes: str | None = None
    one_key_value_count: bool = False


@dataclass(frozen=True)
class GroupedFamily:
    """One ``model_type`` that can be built with grouped attention.

    Attributes:
        model_type: The stock model type.
        config: Name of the stock configuration class.
        blocks: Where a kind's attention blocks stand: a pattern for the end of a module's name, with the
            layer's number as its group.
        auto_classes: For each Auto class, the stock classes it may give, the usual one first.
        facts: What the blocks read besides shapes.
    """

    model_type: str
    config: str
    blocks: dict[str, str]
    auto_classes: dict[str, tuple[str, ...]]
    facts: BlockFacts = BlockFacts()

    @property
    def stock_classes(self) -> tuple[str, ...]:
        """Every stock class that an Auto class may give, once."""
        return tuple(dict.fromkeys(name for names in self.auto_classes.values() for name in names))


def grouped_name(stock: str) -> str:
    """Name of the grouped class of a stock class."""
    return f"Gqkva{stock}"


def auto_map(family: GroupedFamily, architectures: Sequence[str] | None = None) -> dict[str, str]:
    """Which class of the modelling file each Auto class gives.

    Args:
        family: The family.
        architectures: Classes of the checkpoint, preferred where an Auto class may give several.
    """
    file = modeling_module(family)
    named = {"AutoConfig": f"{file}.{grouped_name(family.config)}"}
    for auto, names in family.auto_classes.items():
        preferred = [name for name in names if grouped_name(name) in (architectures or ())]
        named[auto] = f"{file}.{grouped_name((preferred or names)[0])}"
    return named


def modeling_module(family: GroupedFamily) -> str:
    """Name of the modelling file that a checkpoint carries, without its ending."""
    return f"modeling_{MODEL_TYPE_PREFIX}{family.model_type}"


_LAYERS = {"self": r"layers\.(\d+)\.self_attn"}
_BERT = {"self": r"layer\.(\d+)\.attention\.self"}
_TOWERS = {
    "text": r"text_model\.encoder\.layers\.(\d+)\.self_attn",
    "vision": r"vision_model\.encoder\.layers\.(\d+)\.self_attn",
}
_ENCODER_DECODER = {
    "encoder": r"encoder\.layers\.(\d+)\.self_attn",
    "decoder": r"decoder\.layers\.(\d+)\.self_attn",
    "cross": r"decoder\.layers\.(\d+)\.encoder_attn",
}

_FAMILIES = (
    GroupedFamily(
        "llama",
        "LlamaConfig",
        _LAYERS,
        {
            "AutoModel": ("LlamaModel",),
            "AutoModelForCausalLM": ("LlamaForCausalLM",),
            "AutoModelForQuestionAnswering": ("LlamaForQuestionAnswering",),
            "AutoModelForSequenceClassification": ("LlamaForSequenceClassification",),
            "AutoModelForTokenClassification": ("LlamaForTokenClassification",),
        },
    ),
    GroupedFamily(
        "mistral",
        "MistralConfig",
        _LAYERS,
        {
            "AutoModel": ("MistralModel",),
            "AutoModelForCausalLM": ("MistralForCausalLM",),
            "AutoModelForQuestionAnswering": ("MistralForQuestionAnswering",),
            "AutoModelForSequenceClassification": ("MistralForSequenceClassification",),
            "AutoModelForTokenClassification": ("MistralForTokenClassification",),
        },
    ),
    GroupedFamily(
        "qwen2",
        "Qwen2Config",
        _LAYERS,
        {
            "AutoModel": ("Qwen2Model",),
            "AutoModelForCausalLM": ("Qwen2ForCausalLM",),
            "AutoModelForQuestionAnswering": ("Qwen2ForQuestionAnswering",),
            "AutoModelForSequenceClassification": ("Qwen2ForSequenceClassification",),
            "AutoModelForTokenClassification": ("Qwen2ForTokenClassification",),
        },
    ),
    GroupedFamily(
        "qwen3",
        "Qwen3Config",
        _LAYERS,
        {
            "AutoModel": ("Qwen3Model",),
            "AutoModelForCausalLM": ("Qwen3ForCausalLM",),
            "AutoModelForQuestionAnswering": ("Qwen3ForQuestionAnswering",),
            "AutoModelForSequenceClassification": ("Qwen3ForSequenceClassification",),
            "AutoModelForTokenClassification": ("Qwen3ForTokenClassification",),
        },
    ),
    GroupedFamily(
        "phi",
        "PhiConfig",
        _LAYERS,
        {
            "AutoModel": ("PhiModel",),
            "AutoModelForCausalLM": ("PhiForCausalLM",),
            "AutoModelForSequenceClassification": ("PhiForSequenceClassification",),
            "AutoModelForTokenClassification": ("PhiForTokenClassification",),
        },
    ),
    GroupedFamily(
        "phi3",
        "Phi3Config",
        _LAYERS,
        {
            "AutoModel": ("Phi3Model",),
            "AutoModelForCausalLM": ("Phi3ForCausalLM",),
            "AutoModelForSequenceClassification": ("Phi3ForSequenceClassification",),
            "AutoModelForTokenClassification": ("Phi3ForTokenClassification",),
        },
        BlockFacts(
            {"num_key_value_heads": "key"}, {"num_attention_heads": "query"}, one_key_value_count=True
        ),
    ),
    GroupedFamily(
        "stablelm",
        "StableLmConfig",
        _LAYERS,
        {
            "AutoModel": ("StableLmModel",),
            "AutoModelForCausalLM": ("StableLmForCausalLM",),
            "AutoModelForSequenceClassification": ("StableLmForSequenceClassification",),
            "AutoModelForTokenClassification": ("StableLmForTokenClassification",),
        },
        BlockFacts({"num_heads": "query", "num_key_value_heads": "key"}, one_key_value_count=True),
    ),
    GroupedFamily(
        "olmo",
        "OlmoConfig",
        _LAYERS,
        {
            "AutoModel": ("OlmoModel",),
            "AutoModelForCausalLM": ("OlmoForCausalLM",),
            "AutoModelForSequenceClassification": ("OlmoForSequenceClassification",),
        },
    ),
    GroupedFamily(
        "olmo2",
        "Olmo2Config",
        _LAYERS,
        {
            "AutoModel": ("Olmo2Model",),
            "AutoModelForCausalLM": ("Olmo2ForCausalLM",),
            "AutoModelForSequenceClassification": ("Olmo2ForSequenceClassification",),
        },
    ),
    GroupedFamily(
        "gemma",
        "GemmaConfig",
        _LAYERS,
        {
            "AutoModel": ("GemmaModel",),
            "AutoModelForCausalLM": ("GemmaForCausalLM",),
            "AutoModelForSequenceClassification": ("GemmaForSequenceClassification",),
            "AutoModelForTokenClassification": ("GemmaForTokenClassification",),
        },
    ),
    GroupedFamily(
        "starcoder2",
        "Starcoder2Config",
        _LAYERS,
        {
            "AutoModel": ("Starcoder2Model",),
            "AutoModelForCausalLM": ("Starcoder2ForCausalLM",),
            "AutoModelForSequenceClassification": ("Starcoder2ForSequenceClassification",),
            "AutoModelForTokenClassification": ("Starcoder2ForTokenClassification",),
        },
    ),
    GroupedFamily(
        "gpt2",
        "GPT2Config",
        {"self": r"h\.(\d+)\.attn"},
        {
            "AutoModel": ("GPT2Model",),
            "AutoModelForCausalLM": ("GPT2LMHeadModel",),
            "AutoModelForPreTraining": ("GPT2LMHeadModel",),
            "AutoModelForQuestionAnswering": ("GPT2ForQuestionAnswering",),
            "AutoModelForSequenceClassification": ("GPT2ForSequenceClassification",),
            "AutoModelForTokenClassification": ("GPT2ForTokenClassification",),
        },
        BlockFacts(sizes="split_size"),
    ),
    GroupedFamily(
        "gpt_neox",
        "GPTNeoXConfig",
        {"self": r"layers\.(\d+)\.attention"},
        {
            "AutoModel": ("GPTNeoXModel",),
            "AutoModelForCausalLM": ("GPTNeoXForCausalLM",),
            "AutoModelForQuestionAnswering": ("GPTNeoXForQuestionAnswering",),
            "AutoModelForSequenceClassification": ("GPTNeoXForSequenceClassification",),
            "AutoModelForTokenClassification": ("GPTNeoXForTokenClassification",),
        },
    ),
    GroupedFamily(
        "opt",
        "OPTConfig",
        _LAYERS,
        {
            "AutoModel": ("OPTModel",),
            "AutoModelForCausalLM": ("OPTForCausalLM",),
            "AutoModelForQuestionAnswering": ("OPTForQuestionAnswering",),
            "AutoModelForSequenceClassification": ("OPTForSequenceClassification",),
        },
    ),
    GroupedFamily(
        "bert",
        "BertConfig",
        _BERT,
        {
            "AutoModel": ("BertModel",),
            "AutoModelForCausalLM": ("BertLMHeadModel",),
            "AutoModelForMaskedLM": ("BertForMaskedLM",),
            "AutoModelForMultipleChoice": ("BertForMultipleChoice",),
            "AutoModelForNextSentencePrediction": ("BertForNextSentencePrediction",),
            "AutoModelForPreTraining": ("BertForPreTraining",),
            "AutoModelForQuestionAnswering": ("BertForQuestionAnswering",),
            "AutoModelForSequenceClassification": ("BertForSequenceClassification",),
            "AutoModelForTextEncoding": ("BertModel",),
            "AutoModelForTokenClassification": ("BertForTokenClassification",),
        },
    ),
    GroupedFamily(
        "roberta",
        "RobertaConfig",
        _BERT,
        {
            "AutoModel": ("RobertaModel",),
            "AutoModelForCausalLM": ("RobertaForCausalLM",),
            "AutoModelForMaskedLM": ("RobertaForMaskedLM",),
            "AutoModelForMultipleChoice": ("RobertaForMultipleChoice",),
            "AutoModelForPreTraining": ("RobertaForMaskedLM",),
            "AutoModelForQuestionAnswering": ("RobertaForQuestionAnswering",),
            "AutoModelForSequenceClassification": ("RobertaForSequenceClassification",),
            "AutoModelForTextEncoding": ("RobertaModel",),
            "AutoModelForTokenClassification": ("RobertaForTokenClassification",),
        },
    ),
    GroupedFamily(
        "distilbert",
        "DistilBertConfig",
        {"self": r"layer\.(\d+)\.attention"},
        {
            "AutoModel": ("DistilBertModel",),
            "AutoModelForMaskedLM": ("DistilBertForMaskedLM",),
            "AutoModelForMultipleChoice": ("DistilBertForMultipleChoice",),
            "AutoModelForPreTraining": ("DistilBertForMaskedLM",),
            "AutoModelForQuestionAnswering": ("DistilBertForQuestionAnswering",),
            "AutoModelForSequenceClassification": ("DistilBertForSequenceClassification",),
            "AutoModelForTextEncoding": ("DistilBertModel",),
            "AutoModelForTokenClassification": ("DistilBertForTokenClassification",),
        },
    ),
    GroupedFamily(
        "vit",
        "ViTConfig",
        {"self": r"layers\.(\d+)\.attention"},
        {
            "AutoModel": ("ViTModel",),
            "AutoModelForImageClassification": ("ViTForImageClassification",),
            "AutoModelForMaskedImageModeling": ("ViTForMaskedImageModeling",),
        },
    ),
    GroupedFamily(
        "deit",
        "DeiTConfig",
        {"self": r"layers\.(\d+)\.attention"},
        {
            "AutoModel": ("DeiTModel",),
            "AutoModelForImageClassification": (
                "DeiTForImageClassification",
                "DeiTForImageClassificationWithTeacher",
            ),
            "AutoModelForMaskedImageModeling": ("DeiTForMaskedImageModeling",),
        },
    ),
    GroupedFamily(
        "dinov2",
        "Dinov2Config",
        {"self": r"layer\.(\d+)\.attention(?:\.attention)?"},
        {
            "AutoModel": ("Dinov2Model",),
            "AutoModelForImageClassification": ("Dinov2ForImageClassification",),
        },
    ),
    GroupedFamily(
        "clip",
        "CLIPConfig",
        _TOWERS,
        {
            "AutoModel": ("CLIPModel",),
            "AutoModelForImageClassification": ("CLIPForImageClassification",),
            "AutoModelForZeroShotImageClassification": ("CLIPModel",),
        },
    ),
    GroupedFamily(
        "siglip",
        "SiglipConfig",
        _TOWERS,
        {
            "AutoModel": ("SiglipModel",),
            "AutoModelForImageClassification": ("SiglipForImageClassification",),
            "AutoModelForZeroShotImageClassification": ("SiglipModel",),
        },
    ),
    GroupedFamily(
        "t5",
        "T5Config",
        {
            "encoder": r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention",
            "decoder": r"decoder\.block\.(\d+)\.layer\.0\.SelfAttention",
            "cross": r"decoder\.block\.(\d+)\.layer\.1\.EncDecAttention",
        },
        {
            "AutoModel": ("T5Model",),
            "AutoModelForPreTraining": ("T5ForConditionalGeneration",),
            "AutoModelForQuestionAnswering": ("T5ForQuestionAnswering",),
            "AutoModelForSeq2SeqLM": ("T5ForConditionalGeneration",),
            "AutoModelForSequenceClassification": ("T5ForSequenceClassification",),
            "AutoModelForTextEncoding": ("T5EncoderModel",),
            "AutoModelForTokenClassification": ("T5ForTokenClassification",),
        },
    ),
    GroupedFamily(
        "bart",
        "BartConfig",
        _ENCODER_DECODER,
        {
            "AutoModel": ("BartModel",),
            "AutoModelForCausalLM": ("BartForCausalLM",),
            "AutoModelForMaskedLM": ("BartForConditionalGeneration",),
            "AutoModelForPreTraining": ("BartForConditionalGeneration",),
            "AutoModelForQuestionAnswering": ("BartForQuestionAnswering",),
            "AutoModelForSeq2SeqLM": ("BartForConditionalGeneration",),
            "AutoModelForSequenceClassification": ("BartForSequenceClassification",),
        },
    ),
    GroupedFamily(
        "whisper",
        "WhisperConfig",
        _ENCODER_DECODER,
        {
            "AutoModel": ("WhisperModel",),
            "AutoModelForAudioClassification": ("WhisperForAudioClassification",),
            "AutoModelForCausalLM": ("WhisperForCausalLM",),
            "AutoModelForSpeechSeq2Seq": ("WhisperForConditionalGeneration",),
        },
        BlockFacts({"num_heads": "key"}, one_key_value_count=True),
    ),
)

GROUPED_FAMILIES = {family.model_type: family for family in _FAMILIES}
