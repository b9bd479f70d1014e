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
from gqkva_convert.conversion.joint import InputMoments
from gqkva_convert.conversion.model import SourceModel
from gqkva_convert.conversion.report import describe_files

if TYPE_CHECKING:
    from gqkva_convert.calibration.capture import Calls
    from gqkva_convert.calibration.data import Batch
    from gqkva_convert.calibration.moments import Moments

# Positions that blocks are refined on; their inputs are kept on disk meanwhile.
REFINE_POSITIONS = 65_536

Advance = Callable[[int], None]
# Begins a stage of work: its name and size, to what is called as it advances.
Stages = Callable[[str, int], Advance]


def no_stages(name: str, total: int) -> Advance:
    """Show nothing."""
    return lambda count: None


class CalibratedModel:
    """A source model and the data it is calibrated on; everything is done when first asked for.

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
        self._recorded: tuple[set[tuple[str, int]], Calls] | None = None
        self._remove: Callable[[], Any] = lambda: None

    @cached_property
    def network(self) -> Any:
        """The model itself, in transformers."""
        from gqkva_convert.calibration.network import load_network

        nbytes = self.model.checkpoint.nbytes
        return load_network(self.located.folder, nbytes, self.model.family.architecture)

    @cached_property
    def batches(self) -> tuple[list[Batch], list[Batch]]:
        """Inputs to learn from, and inputs held out to compare on."""
        from gqkva_convert.calibration.cache import split_held_out
        from gqkva_convert.calibration.data import make_batches

        return split_held_out(make_batches(self.settings, self.located.folder, self.network))

    @cached_property
    def key(self) -> str:
        """SHA-256 of model, data and settings."""
        from gqkva_convert.calibration.cache import calibration_key

        files = describe_files(self.model.checkpoint, self.located.sha256)
        modified = {file.name: file.stat().st_mtime_ns for file in self.model.checkpoint.files}
        return calibration_key(self.settings, {"files": files, "modified": modified}, self.batches[0])

    @cached_property
    def moments(self) -> Moments:
        """Second moments of what every attention block reads."""
        from gqkva_convert.calibration.cache import calibrated_moments

        learned = self.batches[0]
        return calibrated_moments(
            lambda: self.network, learned, self.key, progress=self.stages("calibrating", len(learned))
        )

    def measured(self, kind: str, layer: int) -> InputMoments | None:
        """A block's moments as merges take them, with a constant input where it has biases."""
        if (kind, layer) not in self.moments.query:
            return None
        from gqkva_convert.conversion.model import has_bias

        block = next(b for b in self.model.blocks if (b.attention.kind, b.layer) == (kind, layer))
        biases = any(
            has_bias(self.model.config, projection.bias)
            for projection in block.attention.projections
            if projection.roles != ("output",)
        )
        query, key = self.moments.mean((kind, layer))
        end = None if biases else -1
        return InputMoments(query[:end, :end], key[:end, :end])

    def recorded(self, places: set[tuple[str, int]]) -> tuple[Calls, list[int], list[int]]:
        """The calls of some blocks, spilled to disk when first asked for and removed with this object.

        Args:
            places: Blocks by kind and layer.

        Returns:
            The calls, the numbers of the batches to learn from, and of those held out.
        """
        learned, held = (_within(batches, REFINE_POSITIONS) for batches in self.batches)
        if self._recorded is None or not places <= self._recorded[0]:
            from gqkva_convert.calibration.cache import cache_folder
            from gqkva_convert.calibration.capture import record

            both = [*learned, *held]
            cache_folder().mkdir(parents=True, exist_ok=True)
            self.close()
            folder = Path(tempfile.mkdtemp(prefix="calls-", dir=cache_folder()))
            self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            progress = self.stages("recording attention inputs", len(both))
            calls = record(self.network, both, folder, places=places, progress=progress)
            self._recorded = places, calls
        return (
            self._recorded[1],
            list(range(len(learned))),
            list(range(len(learned), len(learned) + len(held))),
        )

    def close(self) -> None:
        """Remove what was spilled to disk; it also goes when the process ends, unless that is killed."""
        self._recorded = None
        self._remove()


def _within(batches: list[Batch], positions: int) -> list[Batch]:
    """The first batches, up to a number of positions; at least one."""
    kept: list[Batch] = []
    count = 0
    for batch in batches:
        if kept and count >= positions:
            break
        kept.append(batch)
        first = next(iter(batch.values()))
        count += first.shape[0] * (first.shape[1] if first.ndim == 2 else 256)
    return kept
