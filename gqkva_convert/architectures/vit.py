"""ViT, DeiT and DINOv2, under the names that Hub checkpoints and `save_pretrained` use."""

from dataclasses import replace

from gqkva_convert.architectures.schema import (
    ALWAYS,
    Attention,
    Bias,
    Family,
    Inputs,
    Key,
    Quotient,
    separate,
)

_QKV_BIAS = Bias(True, "qkv_bias")

ATTENTION = Attention(
    kind="self",
    projections=separate(
        "encoder.layer.{layer}.attention.",
        "attention.query",
        "attention.key",
        "attention.value",
        "output.dense",
        _QKV_BIAS,
        ALWAYS,
    ),
    num_attention_heads=Key("num_attention_heads", 12),
    head_dim=Quotient(Key("hidden_size", 768), Key("num_attention_heads", 12)),
    cache="none",
    is_causal=False,
    modules=r"layers\.(\d+)\.attention",
)

VIT = Family(
    model_type="vit",
    stem="ViT",
    usual="ForImageClassification",
    tasks=("ImageClassification", "MaskedImageModeling"),
    inputs=Inputs(image_processor="ViTImageProcessor"),
    first_position=0,
    decoder_start=None,
    prefixes=("vit.", ""),
    attention=(ATTENTION,),
    others=(
        "embeddings.*",
        "encoder.layer.{layer}.layernorm_before.*",
        "encoder.layer.{layer}.layernorm_after.*",
        "encoder.layer.{layer}.intermediate.dense.*",
        "encoder.layer.{layer}.output.dense.*",
        "layernorm.*",
        "pooler.*",
    ),
    heads={"ForImageClassification": ("classifier.*",), "ForMaskedImageModeling": ("decoder.*",)},
    gguf=None,
)

DEIT = replace(
    VIT,
    model_type="deit",
    stem="DeiT",
    usual="ForImageClassificationWithTeacher",
    tasks=("MaskedImageModeling",),
    other_tasks={"ImageClassification": ("ForImageClassification", "ForImageClassificationWithTeacher")},
    inputs=Inputs(image_processor="DeiTImageProcessor"),
    prefixes=("deit.", ""),
    heads={
        **VIT.heads,
        "ForImageClassificationWithTeacher": ("cls_classifier.*", "distillation_classifier.*"),
    },
)

DINOV2 = replace(
    VIT,
    model_type="dinov2",
    stem="Dinov2",
    tasks=("ImageClassification",),
    inputs=Inputs(image_processor="BitImageProcessor"),
    any_image_size=True,
    # The projections are in one module or the other, by the version of transformers.
    attention=(replace(ATTENTION, modules=r"layer\.(\d+)\.attention(?:\.attention)?"),),
    prefixes=("dinov2.", ""),
    others=(
        "embeddings.*",
        "encoder.layer.{layer}.norm1.*",
        "encoder.layer.{layer}.norm2.*",
        "encoder.layer.{layer}.layer_scale1.*",
        "encoder.layer.{layer}.layer_scale2.*",
        "encoder.layer.{layer}.mlp.*",
        "layernorm.*",
    ),
    heads={"ForImageClassification": ("classifier.*",)},
)
