"""CLIP and SigLIP: a text and a vision tower, each with its own head count."""

from dataclasses import replace

from gqkva_convert.architectures.schema import ALWAYS, Attention, Family, Inputs, Key, Quotient, separate


def _attention(tower: str, heads: int, width: int, *, is_causal: bool = False) -> Attention:
    """Return the attention block of a tower, by the defaults of its configuration."""
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    number = Key(f"{tower}_config.num_attention_heads", heads)
    return Attention(
        kind=tower,
        projections=separate(f"{tower}_model.encoder.layers.{{layer}}.self_attn.", *names, ALWAYS),
        num_layers=Key(f"{tower}_config.num_hidden_layers", 12),
        num_attention_heads=number,
        head_dim=Quotient(Key(f"{tower}_config.hidden_size", width), number),
        cache="none",
        is_causal=is_causal,
    )


_VISION = _attention("vision", 12, 768)
_TOWERS = ("text", "vision")
_IN_LAYER = ("layer_norm1", "layer_norm2", "mlp")

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
    attention=(_attention("text", 8, 512, is_causal=True), _VISION),
    others=(
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        *(f"{tower}_model.encoder.layers.{{layer}}.{name}.*" for tower in _TOWERS for name in _IN_LAYER),
        "text_model.final_layer_norm.*",
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.*",
        "vision_model.embeddings.position_embedding.weight",
        "vision_model.pre_layrnorm.*",
        "vision_model.post_layernorm.*",
    ),
    heads={
        "Model": ("text_projection.weight", "visual_projection.weight", "logit_scale"),
        "ForImageClassification": ("classifier.*",),
    },
    parts={"CLIPForImageClassification": ("vision",)},
    dropped={
        f"{tower}_model.embeddings.position_ids": "position numbers, recomputed by transformers"
        for tower in _TOWERS
    },
    gguf=None,
)

SIGLIP = replace(
    CLIP,
    model_type="siglip",
    stem="Siglip",
    inputs=Inputs("SiglipTokenizer", image_processor="SiglipImageProcessor", processor="SiglipProcessor"),
    attention=(_attention("text", 12, 768), _VISION),
    others=(
        *(name for name in CLIP.others if "pre_layrnorm" not in name and "class_embedding" not in name),
        "text_model.head.*",
        # The vision tower's pooling head attends with one learned query; torch fuses its projections and
        # transformers has no grouped form of it, so it stays as it is.
        "vision_model.head.*",
    ),
    heads={"Model": ("logit_scale", "logit_bias"), "ForImageClassification": ("classifier.*",)},
    config_keys=frozenset({"vision_use_head"}),
    parts={"SiglipForImageClassification": ("vision",)},
)
