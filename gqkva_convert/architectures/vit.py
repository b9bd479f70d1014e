"""ViT, DeiT and DINOv2, under the names that Hub checkpoints and `save_pretrained` use."""

from dataclasses import replace

from gqkva_convert.architectures.schema import ALWAYS, Attention, Bias, Family, Key, Projection, Quotient

_QKV_BIAS = Bias(True, "qkv_bias")

ATTENTION = Attention(
    kind="self",
    projections=(
        Projection("encoder.layer.{layer}.attention.attention.query", ("query",), _QKV_BIAS),
        Projection("encoder.layer.{layer}.attention.attention.key", ("key",), _QKV_BIAS),
        Projection("encoder.layer.{layer}.attention.attention.value", ("value",), _QKV_BIAS),
        Projection("encoder.layer.{layer}.attention.output.dense", ("output",), ALWAYS, head_axis=1),
    ),
    num_layers=Key("num_hidden_layers"),
    num_attention_heads=Key("num_attention_heads", 12),
    head_dim=Quotient(Key("hidden_size", 768), Key("num_attention_heads", 12)),
    num_key_value_heads=None,
    cache="none",
)

VIT = Family(
    model_type="vit",
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
    heads=("classifier.*", "decoder.*"),
    architecture="ViTForImageClassification",
)

DEIT = replace(
    VIT,
    model_type="deit",
    prefixes=("deit.", ""),
    heads=("classifier.*", "cls_classifier.*", "distillation_classifier.*", "decoder.*"),
    architecture="DeiTForImageClassificationWithTeacher",
)

DINOV2 = replace(
    VIT,
    model_type="dinov2",
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
    heads=("classifier.*",),
    architecture="Dinov2ForImageClassification",
)
