"""Checkpoints of a run: each is there only when it is complete, and read only by the run it is of."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from gqkva_convert.checkpoint.jsonfile import read_json, write_json
from gqkva_convert.data.names import fingerprint
from gqkva_convert.errors import TrainingError, first_line, is_out_of_memory
from gqkva_convert.uptraining.engine.average import Average, local_part
from gqkva_convert.uptraining.engine.processes import summed
from gqkva_convert.uptraining.job import Job
from gqkva_convert.uptraining.rows.row import Rows

STATE, ROWS_STATE = "trainer.json", "rows.pt"


@dataclass
class Progress:
    """Progress of a run; kept with every checkpoint.

    Attributes:
        step: Steps done.
        tokens: Tokens trained on.
        seconds: Spent on it, earlier parts of an interrupted run included.
        left_out: Steps left out because their loss was not finite.
        first_loss: Held-out loss before training.
        best_loss: Least held-out loss after some of it, and the step it was measured at.
        reached: Whether the target is met, so that nothing is left to do.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    left_out: int = 0
    first_loss: float | None = None
    best_loss: float = math.inf
    best_step: int = -1
    reached: bool = False


class Checkpoints:
    """Writes and reads the checkpoints of a run.

    Args:
        job: The run.
        accelerator: Accelerate's, with model and optimiser prepared.
        model: What is trained, as Accelerate wrapped it.
        rows: The data.
        average: Of the weights, where one is kept.
    """

    def __init__(self, job: Job, accelerator: Any, model: Any, rows: Rows, average: Average | None) -> None:
        self.accelerator = accelerator
        self.model = model
        self.rows = rows
        self.average = average
        self.folder, settings = job.run, job.settings
        self.limit = settings.save_total_limit
        # What must be as it was for a run to go on as it was.
        self._identity = {
            "processes": accelerator.num_processes,
            "rows": rows.digest,
            "data": [fingerprint(settings.data), fingerprint(settings.held_out)],
        }

    def save(self, progress: Progress) -> None:
        """Write a checkpoint, which has its name only when it is complete; none of weights gone bad."""
        if not self._is_sound():
            return
        scratch = self.folder.scratch_path(progress.step)
        is_main = self.accelerator.is_main_process
        if is_main:
            self.folder.scratch(progress.step)
        self.accelerator.wait_for_everyone()
        try:
            self._write(scratch, progress)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)  # what there is may be what fills the disk
            raise
        self.accelerator.wait_for_everyone()
        if is_main:
            self.folder.keep(scratch, self.limit, progress.best_step)
        self.accelerator.wait_for_everyone()

    def _write(self, scratch: Path, progress: Progress) -> None:
        try:
            self.accelerator.save_state(str(scratch))
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error  # the first process's own
        if self.average is not None:
            torch.save(self.average.state(), scratch / self._average_file())
        if self.accelerator.is_main_process:
            torch.save(self.rows.state(), scratch / ROWS_STATE)
            write_json(scratch / STATE, {**vars(progress), **self._identity})

    def load(self, checkpoint: Path) -> Progress:
        """Put weights, optimiser and rows back to where they were.

        Raises:
            TrainingError: It is damaged, or of other data or another number of processes.
        """
        try:
            state = read_json(checkpoint / STATE)
            self._check_identity({name: state.pop(name) for name in self._identity}, checkpoint)
            progress = Progress(**state)
            self.accelerator.load_state(str(checkpoint))
            self.rows.restore(torch.load(checkpoint / ROWS_STATE, weights_only=True))
            if self.average is not None:
                self.average.restore(torch.load(checkpoint / self._average_file(), weights_only=True))
        except (Exception, CheckpointException) as error:  # each part has a reader with errors of its own
            if isinstance(error, TrainingError) or is_out_of_memory(error):
                raise
            raise TrainingError(
                f"{checkpoint} is damaged ({first_line(error)}); remove it, and --resume goes on from the "
                "one before"
            ) from error
        return progress

    def _average_file(self) -> str:
        return f"average-{self.accelerator.process_index}.pt"

    @torch.no_grad()
    def _is_sound(self) -> bool:
        """Return whether all weights are finite, in every process."""
        bad = 0.0
        for weight in self.model.parameters():
            bad += float(not torch.isfinite(local_part(weight)).all())
        return summed(self.accelerator, [bad])[0] == 0

    def _check_identity(self, found: dict[str, Any], checkpoint: Path) -> None:
        ours = self._identity
        if found["processes"] != ours["processes"]:
            raise TrainingError(
                f"{checkpoint} is of {found['processes']} processes, these are {ours['processes']}; go on "
                "with as many as before"
            )
        if any(found[name] != ours[name] for name in ("rows", "data")):
            raise TrainingError(
                f"the data have changed since {checkpoint} was written; restore them, or start anew "
                "with --overwrite"
            )
