"""Loading a model to run data through it, within the memory there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gqkva_convert.architectures import TEXT
from gqkva_convert.errors import CheckpointError, DataError, first_line
from gqkva_convert.heads import Place
from gqkva_convert.modeling.families import find_family, grouped_family
from gqkva_convert.modeling.loading import WITHOUT_ADAPTER, find_loader
from gqkva_convert.modeling.log_levels import quiet_transformers
from gqkva_convert.modeling.resize import find_block

# A model up to this size is simply loaded; a larger one is read layer by layer in every pass.
RESIDENT_BYTES = 4 << 30
# Up to this size it is also computed in float32, which is exact and no slower on most CPUs.
FLOAT32_BYTES = 1 << 30


def load_network(folder: Path, nbytes: int, preferred: str) -> Any:
    """Load a folder as the class that it stores, in eval mode; no code of the folder is run.

    On a GPU, as much of it as fits is kept there and the rest is brought in layer by layer; without one, a
    model larger than `RESIDENT_BYTES` stays on disk and is read layer by layer (accelerate's offloading).

    Args:
        folder: Checkpoint folder.
        nbytes: Size of its weights.
        preferred: Stock class to load where the tensors are those of several.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    import torch

    quiet_transformers()
    options: dict[str, Any] = {"dtype": torch.float32 if nbytes <= FLOAT32_BYTES else "auto"}
    if torch.cuda.is_available():
        options["device_map"] = "auto"
        free = torch.cuda.mem_get_info()[0]
        options["max_memory"] = {torch.cuda.current_device(): int(0.6 * free), "cpu": _available_bytes() // 2}
    elif nbytes > RESIDENT_BYTES:
        options["device_map"] = {"": "disk"}
    try:
        _, loader, others = find_loader(folder, preferred)
        model = loader.from_pretrained(folder, **options, **others, **WITHOUT_ADAPTER)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: transformers cannot load it to run data through it: {first_line(error)}"
        ) from error
    return model.eval()


def _available_bytes() -> int:
    import os

    return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def attention_blocks(model: Any) -> dict[Place, Any]:
    """Find a model's attention modules by kind and layer."""
    text = getattr(model.config, TEXT, None)
    inner = None if text is None else text.model_type
    family = grouped_family(find_family(model.config.model_type, type(model).__name__, inner))
    found = {}
    for name, module in model.named_modules():
        place = find_block(name, module, family.blocks)
        if place is not None:
            found[place] = module
    return found


def run_batch(model: Any, batch: dict[str, Any]) -> None:
    """Run one forward pass and discard its output.

    Raises:
        DataError: The data do not fit the model.
    """
    import inspect

    import torch

    device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    arguments = inspect.signature(model.forward).parameters
    if "use_cache" in arguments:
        inputs["use_cache"] = False
    if "logits_to_keep" in arguments:
        inputs["logits_to_keep"] = 1  # the logits of every position would be the largest tensor of all
    try:
        with torch.inference_mode():
            model(**inputs)
    except (ValueError, IndexError) as error:  # images of another size, tokens that are not in the vocabulary
        raise DataError(f"the model cannot read these data: {first_line(error)}") from error


@contextmanager
def watched(
    model: Any, watch: Callable[..., None], places: set[Place] | None = None
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that runs batches through a model while its attention blocks are watched.

    Args:
        model: A transformers model.
        watch: Called for each call of a block with its kind and layer, its arguments as a tuple and by name,
            and the batch.
        places: Blocks to watch by kind and layer; None for all.
    """
    current: dict[str, Any] = {}

    def hook_of(place: Place) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            watch(place, args, kwargs, current)

        return hook

    def run(batch: dict[str, Any]) -> None:
        current.clear()
        current.update(batch)
        run_batch(model, batch)

    hooks = [
        block.register_forward_pre_hook(hook_of(place), with_kwargs=True)
        for place, block in attention_blocks(model).items()
        if places is None or place in places
    ]
    try:
        yield run
    finally:
        for hook in hooks:
            hook.remove()


def valid_positions(kind: str, batch: dict[str, Any], role: str) -> Any:
    """Return the mask ``(batch, positions)`` of the inputs of a block that are not padding; None for all."""
    if kind == "vision" or ("pixel_values" in batch and "input_ids" not in batch):
        return None
    if kind == "decoder" or (kind == "cross" and role == "query"):
        return batch.get("decoder_attention_mask")
    return batch.get("attention_mask")
