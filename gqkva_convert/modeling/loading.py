"""Loading a checkpoint folder, stock or grouped, and inputs that any family takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gqkva_convert.architectures import NESTED, TEXT, Family
from gqkva_convert.checkpoint.folder import open_checkpoint
from gqkva_convert.modeling.families import find_family
from gqkva_convert.modeling.stored_class import is_ignored, stored_loader

_MAIN_OUTPUTS = (
    "logits",
    "logits_per_text",
    "start_logits",
    "prediction_logits",
    "reconstruction",
    "last_hidden_state",
)
# With PEFT installed, transformers looks for an adapter beside the weights; here it looks in no folder.
WITHOUT_ADAPTER = {"adapter_kwargs": {"subfolder": ".no-adapter"}}


def load_model(
    folder: Path,
    preferred: str,
    dtype: str = "float32",
    *,
    device_map: Any = None,
    attn_implementation: str | None = None,
    loader: Any = None,
) -> Any:
    """Load a folder as the class that it stores (`stored_classes`); runs no code from the folder.

    Tensors that transformers leaves unread are no fault where the family's record knows them: masks and other
    buffers of old checkpoints, heads and poolers of other classes.

    A configuration of an adapter beside the weights is passed over unless ``loader`` is given: it is stale,
    since folders with an adapter to merge are refused when they are opened. Some versions of transformers
    before 5.23 look for it all the same where PEFT is installed, and fail.

    Args:
        folder: Checkpoint folder.
        preferred: Stock class to load where the tensors are those of several.
        dtype: Dtype to load into; "auto" for the one it is stored in.
        device_map: As transformers takes it; None for the CPU.
        attn_implementation: As transformers calls it; by default what it chooses.
        loader: Class to load with instead, one of transformers' Auto classes for example.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: A tensor is missing, unexpected or of another shape.
        GqkvaError: The folder is no checkpoint, or its class is unclear.
    """
    family, stored, options = find_loader(folder, preferred)
    options |= {} if loader else WITHOUT_ADAPTER
    loader = loader or stored
    model, info = loader.from_pretrained(
        folder,
        dtype=dtype,
        device_map=device_map,
        attn_implementation=attn_implementation,
        output_loading_info=True,
        **options,
    )
    unexpected = {name for name in info["unexpected_keys"] if not is_ignored(family, name)}
    for kind, names in {**info, "unexpected_keys": unexpected}.items():
        if kind in ("missing_keys", "unexpected_keys", "mismatched_keys") and names:
            raise ValueError(f"{kind.replace('_', ' ')}: {', '.join(map(str, sorted(names)[:3]))}")
    return model.eval()


def find_loader(folder: Path, preferred: str) -> tuple[Family, Any, dict[str, Any]]:
    """Return a folder's family, the class that loads it, and options for the class's constructor.

    Raises:
        ValueError: transformers does not know the configuration.
        GqkvaError: The folder is no checkpoint, or its class is unclear.
    """
    import transformers

    transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    checkpoint = open_checkpoint(folder)
    text = checkpoint.config.get(TEXT)
    inner = text.get("model_type") if isinstance(text, dict) else None
    family = find_family(checkpoint.config["model_type"], folder, inner)
    return family, *stored_loader(family, checkpoint.config, checkpoint.names, preferred)


def text_positions(config: Any) -> int | None:
    """Return the most tokens that a model reads at once; None if its table of positions has no end.

    Raises:
        FamilyError: The model has no record.
    """
    text = getattr(config, "text_config", config)
    for name in ("max_position_embeddings", "max_target_positions"):
        limit = getattr(text, name, None)
        if isinstance(limit, int):
            return limit - find_family(config.model_type, type(config).__name__).first_position
    return None


def example_inputs(model: Any, seed: int = 0) -> dict[str, Any]:
    """Make random inputs of the kinds that a model takes: one text, image or recording.

    Args:
        model: A model of any family.
        seed: Seed of the inputs.
    """
    import inspect

    import torch

    config, name = model.config, type(model).__name__
    taken = inspect.signature(model.forward).parameters
    text, vision = (getattr(config, f"{part}_config", config) for part in ("text", "vision"))
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Any] = {}
    if hasattr(text, "vocab_size"):
        length = min(32, text_positions(config) or 32)
        tokens = torch.randint(text.vocab_size, (1, length), generator=generator)
        if config.model_type in NESTED:  # text alone, without the places of images or sound
            words = torch.tensor(ordinary_tokens(config))
            tokens = words[tokens % len(words)]
        inputs["input_ids"] = tokens[:, None] if "MultipleChoice" in name else tokens
        if config.is_encoder_decoder and "SequenceClassification" in name:
            tokens[:, -1] = config.eos_token_id  # where it reads; it makes the decoder's tokens of these
        elif config.is_encoder_decoder:
            inputs["decoder_input_ids"] = tokens[:, : length // 2]
    if hasattr(vision, "image_size") and config.model_type not in NESTED:
        size = vision.image_size
        height, width = (size, size) if isinstance(size, int) else size
        inputs["pixel_values"] = torch.randn(1, vision.num_channels, height, width, generator=generator)
    if hasattr(config, "num_mel_bins") and config.model_type not in NESTED:
        frames = 2 * config.max_source_positions
        inputs["input_features"] = torch.randn(1, config.num_mel_bins, frames, generator=generator)
    inputs["use_cache"] = False  # transformers sizes that of a BART decoder by the encoder's layers
    return {key: value for key, value in inputs.items() if key in taken}


def ordinary_tokens(config: Any) -> list[int]:
    """Return the tokens to which a configuration gives no meaning, such as the place of an image."""

    def special(values: Mapping[Any, Any]) -> set[int]:
        found = {value for key, value in values.items() if "token" in str(key) and isinstance(value, int)}
        return found.union(*(special(value) for value in values.values() if isinstance(value, dict)))

    return sorted({*range(config.get_text_config().vocab_size)} - special(config.to_dict()))


def main_output(output: Any) -> Any:
    """Return the main tensor of a model's output: logits, else what it predicts, else hidden states."""
    for name in _MAIN_OUTPUTS:
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    raise ValueError(f"{type(output).__name__} has neither logits nor hidden states")
