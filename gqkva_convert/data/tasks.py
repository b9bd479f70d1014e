"""Inputs and tasks of models, told from their classes."""

from __future__ import annotations

import inspect
from typing import Any

from gqkva_convert.errors import TrainingError
from gqkva_convert.modeling.families import find_family, stock_name

CAUSAL, MASKED, TO_TARGET, IMAGES, EMBEDDING, TEXTS = (
    "causal-lm",
    "masked-lm",
    "seq2seq-lm",
    "image-classification",
    "embedding",
    "text-classification",
)


def arguments(model: Any) -> set[str]:
    """Name the arguments of a model's forward pass."""
    return set(inspect.signature(model.forward).parameters)


def is_causal(model: Any) -> bool:
    """Return whether positions see only those before them, so that texts may be cut anywhere.

    The family's record decides, and the configuration where it makes an encoder a decoder or the reverse.

    Raises:
        FamilyError: The model has no record.
    """
    config, name = model.config, type(model).__name__
    if getattr(config, "is_causal", None) is False or getattr(config, "use_bidirectional_attention", None):
        return False
    is_encoder = find_family(config.model_type, name).part(stock_name(name)).is_encoder
    return not is_encoder or bool(getattr(config, "is_decoder", False))


def find_task(model: Any) -> str | None:
    """Return the task of a transformers model; None for one that is not listed above."""
    name = type(model).__name__
    if model.main_input_name == "input_ids":
        if name.endswith("ForMaskedLM"):
            return MASKED
        if model.config.is_encoder_decoder and name.endswith("ForConditionalGeneration"):
            return TO_TARGET
        if model.get_output_embeddings() is not None and is_causal(model):
            return CAUSAL
        if name.endswith("Model") and not model.config.is_encoder_decoder:
            return EMBEDDING
    if "pixel_values" in arguments(model) and name.endswith("ForImageClassification"):
        return IMAGES
    if model.main_input_name == "input_ids" and name.endswith("ForSequenceClassification"):
        return TEXTS
    return None


def trained_task(model: Any) -> str:
    """Return the task that a model is trained for.

    Raises:
        TrainingError: There is none that can be trained here.
    """
    task = find_task(model)
    if task is None or task == TEXTS:
        raise TrainingError(
            f"{type(model).__name__} cannot be trained here; models with a head for causal, masked or "
            "sequence-to-sequence language modelling or for image classification can, and text encoders "
            "without a head"
        )
    return task
