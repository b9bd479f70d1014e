"""A checkpoint as transformers would load it: its configuration class, and which tensors would not load."""

from __future__ import annotations

import logging
from typing import Any

from gqkva_convert.architectures import Family
from gqkva_convert.checkpoint.folder import WEIGHTS_KEY, Checkpoint
from gqkva_convert.errors import CheckpointError, FamilyError
from gqkva_convert.modeling.families import stock_type
from gqkva_convert.modeling.log_levels import quiet, without_bars
from gqkva_convert.modeling.stored_class import stored_loader
from gqkva_convert.source.deci import is_deci, mistral_config


def stock_config(config: dict[str, Any], *, is_grouped: bool = False) -> Any:
    """Return a configuration as transformers' class holds it: old keys renamed, defaults filled in.

    Args:
        config: ``config.json`` of any version; a DeciLM's is taken for the Mistral that it is.
        is_grouped: Whether a grouped model's becomes the grouped class; by default the stock one.

    Raises:
        FamilyError: transformers refuses it, or does not know its rotary positions.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = mistral_config(config) if is_deci(config) else config
    kind = config["model_type"] if is_grouped else stock_type(config["model_type"])
    ours = ("auto_map", "model_type", WEIGHTS_KEY)
    try:
        with quiet("transformers"):
            made = CONFIG_MAPPING[kind].from_dict(
                {name: value for name, value in config.items() if name not in ours}
            )
    except Exception as error:  # whatever its classes raise for a value that they do not expect
        reason = " ".join(str(error).split()) or type(error).__name__
        scaling = config.get("rope_scaling") or config.get("rope_parameters")
        if isinstance(scaling, dict) and "su" in (scaling.get("rope_type"), scaling.get("type")):
            reason += "; rotary positions of the kind 'su' are called 'longrope' now, write that in its place"
        raise FamilyError(f"config.json: transformers refuses this configuration: {reason}") from error
    kind = (getattr(made, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in ("default", *ROPE_INIT_FUNCTIONS):
        raise FamilyError(f"config.json: rotary positions of the kind {kind!r} are not known to transformers")
    return made


def require_loadable(checkpoint: Checkpoint, family: Family) -> None:
    """Refuse a checkpoint of which transformers could not load every tensor that its class has.

    transformers itself says so: it loads empty tensors of the stored shapes on its meta device. Heads and
    poolers of which nothing is stored are not missed.

    Args:
        checkpoint: An opened checkpoint.
        family: Record of its family.

    Raises:
        CheckpointError: A tensor is missing, or has another shape than in the configured class.
        FamilyError: transformers refuses the configuration.
    """
    import torch

    config = stock_config(checkpoint.config, is_grouped=True)
    described = {**checkpoint.config, "architectures": config.architectures}
    loader, options = stored_loader(family, described, checkpoint.names, family.architecture)
    stored = {name: torch.empty(tensor.shape, device="meta") for name, tensor in checkpoint.tensors.items()}
    try:
        with quiet("transformers", logging.CRITICAL), without_bars():
            _, info = loader.from_pretrained(
                None,
                config=config,
                state_dict=stored,
                device_map="meta",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                attn_implementation="eager",
                **options,
            )
    except Exception as error:  # whatever building a model of strange sizes leads to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FamilyError(
            f"{checkpoint.folder}: transformers cannot build a {loader.__name__} from config.json: {reason}"
        ) from error
    _refuse_shapes(checkpoint, loader.__name__, info["mismatched_keys"])
    _refuse_missing(checkpoint, family, loader.__name__, info["missing_keys"])


def _refuse_shapes(checkpoint: Checkpoint, loader: str, mismatched: Any) -> None:
    # Layers of a DeciLM have their own numbers of heads; steps compare those with the configuration.
    own = ".self_attn." if is_deci(checkpoint.config) else None
    wrong = sorted(entry for entry in mismatched if own is None or own not in entry[0])
    if not wrong:
        return
    name, found, expected = wrong[0]
    tensor = checkpoint.tensors.get(name)
    where = checkpoint.folder if tensor is None else tensor.file
    advice = (
        "it was saved while its values lay in other processes, gather them and save the model again"
        if 0 in found
        else "one of the two is another model's"
    )
    raise CheckpointError(
        f"{where}: {name!r} has the shape {list(found)}, by config.json {loader} takes {list(expected)}; "
        f"{advice}{_more(wrong)}"
    )


def _refuse_missing(checkpoint: Checkpoint, family: Family, loader: str, missing: Any) -> None:
    stored = {_module(name, family) for name in checkpoint.tensors}
    optional = {head.partition(".")[0] for head in family.known_heads()} | {"pooler"}
    lacking = sorted(
        name
        for name in missing
        if name in checkpoint.absent
        or _module(name, family) not in optional
        or _module(name, family) in stored
    )
    if lacking:
        file_name = checkpoint.absent.get(lacking[0])
        place = "no file holds it" if file_name is None else f"it is not in {file_name}, as the index says"
        raise CheckpointError(
            f"{checkpoint.folder}: {lacking[0]!r} is missing: {place}, and {loader} would draw it at random; "
            f"download or save the checkpoint again{_more(lacking)}"
        )


def _module(name: str, family: Family) -> str:
    """Return the first part of a tensor's name without the base model's prefix."""
    prefix = next((prefix for prefix in family.prefixes if prefix and name.startswith(prefix)), "")
    return name.removeprefix(prefix).partition(".")[0]


def _more(names: list[Any]) -> str:
    return f" ({len(names) - 1} more like it)" if len(names) > 1 else ""
