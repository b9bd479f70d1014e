"""CLIP and SigLIP: a text and a vision tower, each with its own head count."""

from dataclasses import replace

from gqkva_convert.architectures.schema import (
    ALWAYS,
    Attention,
    Family,
    Inputs,
    Key,
    Quotient,
    moved,
    separate,
)

TEXT = Attention(
    kind="text",
    projections=separate(
        "text_model.encoder.layers.{layer}.self_attn.", "q_proj", "k_proj", "v_proj", "out_proj", ALWAYS
    ),
    num_layers=Key("text_config.num_hidden_layers", 12),
    num_attention_heads=Key("text_config.num_attention_heads", 8),
    head_dim=Quotient(Key("text_config.hidden_size", 512), Key("text_config.num_attention_heads", 8)),
    num_key_value_heads=None,
    cache="none",
    is_causal=True,
)

VISION = replace(
    TEXT,
    kind="vision",
    projections=moved(TEXT.projections, "text_model", "vision_model"),
    is_causal=False,
    num_layers=Key("vision_config.num_hidden_layers", 12),
    num_attention_heads=Key("vision_config.num_attention_heads", 12),
    head_dim=Quotient(Key("vision_config.hidden_size", 768), Key("vision_config.num_attention_heads", 12)),
)

CLIP = Family(
    model_type="clip",
    stem="CLIP",
    usual="Model",
    tasks=("ImageClassification",),
    other_tasks={"ZeroShotImageClassification": ("Model",)},
    inputs=Inputs("CLIPTokenizer", image_processor="CLIPImageProcessor", processor="CLIPProcessor"),
    first_position=0,
    decoder_start=None,
    prefixes=("",),
    attention=(TEXT, VISION),
    others=(
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        "text_model.encoder.layers.{layer}.layer_norm1.*",
        "text_model.encoder.layers.{layer}.layer_norm2.*",
        "text_model.encoder.layers.{layer}.mlp.*",
        "text_model.final_layer_norm.*",
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.*",
        "vision_model.embeddings.position_embedding.weight",
        "vision_model.encoder.layers.{layer}.layer_norm1.*",
        "vision_model.encoder.layers.{layer}.layer_norm2.*",
        "vision_model.encoder.layers.{layer}.mlp.*",
        "vision_model.pre_layrnorm.*",
        "vision_model.post_layernorm.*",
    ),
    heads=("text_projection.weight", "visual_projection.weight", "logit_scale", "classifier.*"),
    parts={"CLIPForImageClassification": ("vision",)},
    dropped={
        "text_model.embeddings.position_ids": "position numbers, recomputed by transformers",
        "vision_model.embeddings.position_ids": "position numbers, recomputed by transformers",
    },
    gguf=None,
)

SIGLIP = replace(
    CLIP,
    model_type="siglip",
    stem="Siglip",
    inputs=Inputs("SiglipTokenizer", image_processor="SiglipImageProcessor", processor="SiglipProcessor"),
    attention=(
        replace(
            TEXT,
            is_causal=False,
            num_attention_heads=Key("text_config.num_attention_heads", 12),
            head_dim=Quotient(
                Key("text_config.hidden_size", 768), Key("text_config.num_attention_heads", 12)
            ),
        ),
        VISION,
    ),
    others=(
        *(name for name in CLIP.others if "pre_layrnorm" not in name and "class_embedding" not in name),
        "text_model.head.*",
        # The vision tower's pooling head attends with one learned query; torch fuses its projections and
        # transformers has no grouped form of it, so it stays as it is.
        "vision_model.head.*",
    ),
    heads=("logit_scale", "logit_bias", "classifier.*"),
    config_keys=frozenset({"vision_use_head"}),
    parts={"SiglipForImageClassification": ("vision",)},
)
