"""A source with data to run through it: its moments, and the calls of its attention blocks."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.checkpoint.hub import Located
from gqkva_convert.errors import OutputError, WeightError
from gqkva_convert.heads import Place
from gqkva_convert.progress import Stages, no_stages, note
from gqkva_convert.records.report import describe_files
from gqkva_convert.source.model import SourceModel
from gqkva_convert.source.stored_block import stored_block
from gqkva_convert.transforms.blocks import InputMoments
from gqkva_convert.units import human_bytes

if TYPE_CHECKING:
    from gqkva_convert.calibration.capture import Calls
    from gqkva_convert.calibration.data import Batch
    from gqkva_convert.calibration.moments import StoredMoments
    from gqkva_convert.data.documents import Reading

# Least and most positions that blocks are refined on; more than the least if `_SPILLED_BYTES` suffice.
_LEAST_POSITIONS, _MOST_POSITIONS = 65_536, 262_144
_SPILLED_BYTES = 16 << 30


class CalibratedModel:
    """A source model and the data it is calibrated on; everything is computed on first use.

    Args:
        located: The source.
        model: The same, opened.
        settings: The data.
        stages: Shows progress.
    """

    def __init__(
        self, located: Located, model: SourceModel, settings: DataSettings, stages: Stages = no_stages
    ) -> None:
        self.located = located
        self.model = model
        self.settings = settings
        self.stages = stages
        self.reading: Reading | None = None
        self._recorded: tuple[set[Place], Calls, int] | None = None
        self._remove: Callable[[], Any] = lambda: None

    @cached_property
    def network(self) -> Any:
        """Load the model in transformers."""
        from gqkva_convert.calibration.network import RESIDENT_BYTES, load_network

        nbytes = self.model.checkpoint.nbytes
        if self.model.checkpoint.pickled and nbytes > RESIDENT_BYTES:
            raise WeightError(
                f"{self.located.folder}: a model of {human_bytes(nbytes)} is read by layers, which needs "
                "safetensors files; save it so first, or convert from weights alone"
            )
        return load_network(self.located.folder, nbytes, self.model.family.architecture)

    @cached_property
    def batches(self) -> tuple[list[Batch], list[Batch]]:
        """Prepare inputs to learn from, and inputs held out to compare on."""
        from gqkva_convert.calibration.cache import split_held_out
        from gqkva_convert.calibration.data import make_batches

        return split_held_out(make_batches(self.settings, self.located.folder, self.network, self._say))

    def _say(self, reading: Reading) -> None:
        self.reading = reading
        note(self.stages, reading.describe())

    @cached_property
    def key(self) -> str:
        """Return the SHA-256 of model, data and settings."""
        from gqkva_convert.calibration.cache import calibration_key

        checkpoint = self.model.checkpoint
        modified = {file.name: file.stat().st_mtime_ns for file in checkpoint.files}
        described = describe_files(checkpoint, self.located.sha256)
        files = {name: file.to_dict() for name, file in described.items()}
        facts = {"config": checkpoint.config, "files": files, "modified": modified}
        return calibration_key(self.settings, facts, checkpoint.files, [*self.batches[0], *self.batches[1]])

    @cached_property
    def moments(self) -> StoredMoments:
        """Measure second moments of the inputs of every attention block."""
        from gqkva_convert.calibration.cache import calibrated_moments

        learned = self.batches[0]
        return calibrated_moments(
            lambda: self.network, learned, self.key, progress=self.stages("calibrating", len(learned))
        )

    def measured(self, place: Place) -> InputMoments | None:
        """Return a block's measured moments, with a constant input where it has biases."""
        if place not in self.moments:
            return None
        block = next(b for b in self.model.blocks if b.place == place)
        query, key = self.moments.mean(place)
        end = None if stored_block(self.model, block).has_input_bias else -1
        return InputMoments(query[:end, :end], key[:end, :end])

    def recorded(self, places: set[Place]) -> tuple[Calls, list[int], list[int]]:
        """Record the calls of blocks, spilled to disk on first use and removed with this object.

        Args:
            places: Blocks by kind and layer.

        Returns:
            The calls, the numbers of the batches to learn from, and of those held out.
        """
        if self._recorded is None or not places <= self._recorded[0]:
            from gqkva_convert.calibration.capture import by_length, record
            from gqkva_convert.checkpoint.cache import make_cache, unfinished

            most = _SPILLED_BYTES // (4 * sum(self.moments.size(place) for place in places))
            most = min(max(most, _LEAST_POSITIONS), _MOST_POSITIONS)
            learned, held = (by_length(_within(batches, most)) for batches in self.batches)
            both = [*learned, *held]
            self.close()
            cache = make_cache("calls")
            _check_room(cache, self.moments, places, both)
            folder = Path(tempfile.mkdtemp(prefix=unfinished(""), dir=cache))
            self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            progress = self.stages("recording attention inputs", len(both))
            calls = record(self.network, both, folder, places=places, progress=progress)
            self._recorded = places, calls, len(learned)
        _, calls, count = self._recorded
        return calls, list(range(count)), list(range(count, len(calls.files)))

    def close(self) -> None:
        """Remove what was spilled to disk; that also happens when the process ends, unless it is killed."""
        self._recorded = None
        self._remove()


def _check_room(cache: Path, moments: StoredMoments, places: set[Place], batches: list[Batch]) -> None:
    """Refuse to spill more than fits on the disk.

    Raises:
        OutputError: It does not fit.
    """
    positions = sum(_positions(batch) for batch in batches)
    needed = 4 * positions * sum(moments.size(place) for place in places)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise OutputError(
            f"{cache} needs {human_bytes(needed)} for attention inputs, {human_bytes(free)} are free; set "
            "GQKVA_CACHE to a folder with room, or give fewer --calibration-samples"
        )


def _positions(batch: Batch) -> int:
    first = next(iter(batch.values()))
    return int(first.shape[0] * (first.shape[1] if first.ndim == 2 else 256))


def _within(batches: list[Batch], positions: int) -> list[Batch]:
    """Return the first batches, up to a number of positions; at least one."""
    kept: list[Batch] = []
    count = 0
    for batch in batches:
        if kept and count >= positions:
            break
        kept.append(batch)
        count += _positions(batch)
    return kept
