"""The models that are measured, side by side on one device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.data.alike import ANSWERS, require_alike
from gqkva_convert.data.documents import Reading
from gqkva_convert.data.sequences import Item, in_groups
from gqkva_convert.data.tasks import arguments, find_task
from gqkva_convert.errors import EvaluationError, first_line, is_out_of_memory
from gqkva_convert.evaluation.device import find_device
from gqkva_convert.evaluation.settings import EvaluationSettings
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.modeling.log_levels import quiet_transformers
from gqkva_convert.progress import Progress, Stages, note
from gqkva_convert.source.model import open_model
from gqkva_convert.source.stock import require_loadable


@dataclass(frozen=True)
class Subject:
    """A model and, maybe, the one it is measured against.

    Attributes:
        folder: Folder of the model, with its tokenizer or image processor.
        task: Task of both models, a name of `data.tasks`.
    """

    folder: Path
    model: Any
    against: Any
    task: str
    settings: EvaluationSettings
    begin: Stages

    @property
    def models(self) -> list[Any]:
        """Return the model, followed by the other one if there is one."""
        return [self.model] if self.against is None else [self.model, self.against]

    def measuring(self, total: int) -> Progress:
        """Begin the stage of measuring ``total`` samples."""
        return self.begin(f"measuring {self.settings.data}", total)

    def say(self, reading: Reading | None) -> None:
        """Tell what was read of the data."""
        if reading is not None:
            note(self.begin, reading.describe())

    def batches(self, samples: Sequence[Item], usual: int) -> Iterator[list[Item]]:
        """Yield groups of samples of the requested batch size, or else `usual`."""
        return in_groups(samples, self.settings.batch_size or usual)


def forward(model: Any, batch: Mapping[str, Any], **options: Any) -> Any:
    """Run a model on the inputs of a batch that it takes, on its device and in its dtype."""
    taken = arguments(model)
    return model(
        **{
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in batch.items()
            if name in taken
        },
        **options,
    )


def open_subject(folder: Path, against: str | None, settings: EvaluationSettings, begin: Stages) -> Subject:
    """Load the models.

    Raises:
        EvaluationError: A model does not load, does nothing that is measured here, or does not match the
            other.
        GqkvaError: A folder is not a checkpoint of a known family.
    """
    model = _load(folder, settings)
    task = find_task(model)
    if task is None:
        raise EvaluationError(
            f"{folder}: {type(model).__name__} is not measured here; models with a head for causal, masked "
            "or sequence-to-sequence language modelling or for classifying images or texts are, and text "
            "encoders without a head"
        )
    other = None
    if against is not None:
        place = locate(against, None).folder
        other = _load(place, settings)
        named = (f"--against {against}", "the model")
        require_alike(named, (other, model), (place, folder), ANSWERS, EvaluationError)
    return Subject(folder, model, other, task, settings, begin)


def _load(folder: Path, settings: EvaluationSettings) -> Any:
    quiet_transformers()
    source = open_model(folder)
    require_loadable(source.checkpoint, source.family)
    device = find_device(settings.device)
    on_gpu = device.type == "cuda"
    dtype = settings.dtype or ("auto" if on_gpu else "float32")
    # With auto accelerate decides, over several GPUs where the model needs them.
    place = ("auto" if settings.device == "auto" else str(device)) if on_gpu else None
    try:
        return load_model(folder, source.family.architecture, dtype, device_map=place)
    except (OSError, ValueError, RuntimeError, KeyError, MemoryError) as error:
        if is_out_of_memory(error):
            raise EvaluationError(f"{folder} does not fit into the memory of {settings.device}") from error
        raise EvaluationError(f"{folder} does not load: {first_line(error)}") from error
