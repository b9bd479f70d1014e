"""Facts about model families as data: tensor names, packing, axes, biases, positions, norms; no behaviour."""

from gqkva_convert.architectures import bart, bert, clip, gpt2, gpt_neox, llama, opt, t5, vit
from gqkva_convert.architectures.schema import (
    NEVER,
    Attention,
    Bias,
    Family,
    HeadBias,
    HeadNorm,
    InputClasses,
    Key,
    Projection,
    Quotient,
    Rotary,
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        llama.LLAMA,
        llama.MISTRAL,
        llama.QWEN2,
        llama.QWEN3,
        llama.PHI,
        llama.PHI3,
        llama.STABLELM,
        llama.OLMO,
        llama.OLMO2,
        llama.GEMMA,
        llama.STARCODER2,
        gpt2.GPT2,
        gpt_neox.GPT_NEOX,
        opt.OPT,
        bert.BERT,
        bert.ROBERTA,
        bert.XLM_ROBERTA,
        bert.CAMEMBERT,
        bert.ELECTRA,
        bert.DISTILBERT,
        vit.VIT,
        vit.DEIT,
        vit.DINOV2,
        clip.CLIP,
        clip.SIGLIP,
        t5.T5,
        bart.BART,
        bart.WHISPER,
    )
}

__all__ = [
    "FAMILIES",
    "NEVER",
    "Attention",
    "Bias",
    "Family",
    "HeadBias",
    "HeadNorm",
    "InputClasses",
    "Key",
    "Projection",
    "Quotient",
    "Rotary",
]
