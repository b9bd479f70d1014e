"""A training run as it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqkva_convert.uptraining.run_folder import RunFolder
from gqkva_convert.uptraining.settings import TrainingSettings

Watch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """A run: what is trained, how, and where its result goes.

    Attributes:
        folder: Checkpoint folder that is trained.
        out: Folder of the result.
        run: Folder of checkpoints and metrics.
        settings: What to do.
        report_to: Trackers of Accelerate.
        watch: Called with the metrics of every step.
        from_scratch: Whether the weights are fresh.
        resume: Whether to continue the run in its folder.
        overwrite: Whether an earlier run and result may be replaced.
    """

    folder: Path
    out: Path
    run: RunFolder
    settings: TrainingSettings
    report_to: tuple[str, ...]
    watch: Watch
    from_scratch: bool
    resume: bool
    overwrite: bool
