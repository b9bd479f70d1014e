"""One training run, from its settings to its result."""

from __future__ import annotations

import contextlib
import datetime
import math
import statistics
from collections.abc import Iterator
from typing import Any

from gqkva_convert.checkpoint.folder import open_checkpoint
from gqkva_convert.checkpoint.sidecars import REPORT
from gqkva_convert.errors import TrainingError, is_out_of_memory
from gqkva_convert.records.environment import versions
from gqkva_convert.records.report import describe_files
from gqkva_convert.records.training import Training
from gqkva_convert.uptraining.assembly import Assembly
from gqkva_convert.uptraining.engine.processes import divide_steps, start_processes
from gqkva_convert.uptraining.engine.trainer import Trainer
from gqkva_convert.uptraining.job import Job
from gqkva_convert.uptraining.result import write_result
from gqkva_convert.uptraining.run_folder import METRICS
from gqkva_convert.uptraining.trainable import load_student


class Run:
    """A run from its folder to its result.

    Args:
        job: What is asked for.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.folder, self.run, self.settings = job, job.folder, job.run, job.settings
        self.assembly = Assembly(job)

    def go(self) -> dict[str, Any]:
        state = start_processes()
        self.is_main = state.is_main_process
        with self.run.held(is_main=self.is_main):
            if self.is_main:
                self._open()
            state.wait_for_everyone()
            with self._fitting():
                trainer = self.assembly.trainer()
                if self.is_main and not self.job.resume:
                    self._begin()
                state.wait_for_everyone()
                self._start_trackers(trainer.accelerator)
                if self.job.resume:
                    self._resume(trainer)
                trainer.run()
            result = self._finish(trainer)
            trainer.accelerator.end_training()
        return result

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """Say what to do where a batch does not fit into memory."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            plan, step = divide_steps(self.settings), 2 if self.settings.mixup else 1
            rows = plan.per_device
            smaller = [
                n for n in range(step, rows // 2 + 1, step) if plan.batch_size // plan.processes % n == 0
            ]
            advice = "gradient_checkpointing or a smaller --length"
            if smaller:
                advice = (
                    f"--per-device-batch-size {smaller[-1]} (the rest of a step is accumulated) or "
                    "gradient_checkpointing"
                )
            raise TrainingError(
                f"a forward pass of {rows} rows does not fit into memory; give {advice}"
            ) from error

    def _open(self) -> None:
        if not self.job.resume:
            self.run.require_free(overwrite=self.job.overwrite)
        elif self.run.settings().get("files") != self._files():
            raise TrainingError(
                f"{self.run.path} is a run on other weights than {self.folder} now holds; start anew with "
                "--overwrite"
            )

    def _files(self) -> dict[str, Any]:
        """Identify the weights that are trained."""
        found = describe_files(open_checkpoint(self.folder))
        return {name: file.to_dict() for name, file in found.items()}

    def _begin(self) -> None:
        """Take the run's folder, once all that is read has been opened: an earlier run may be in it."""
        self.run.begin(
            {
                "folder": str(self.folder),
                "files": self._files(),
                "settings": self.settings.model_dump(exclude_defaults=True),
                "overwrite": self.job.overwrite,
                "from_scratch": self.job.from_scratch,
                "any_model": not (self.folder / REPORT).is_file(),
                "report_to": list(self.job.report_to),
            },
            overwrite=self.job.overwrite,
        )

    def _start_trackers(self, accelerator: Any) -> None:
        if self.job.report_to:
            # Some trackers take nothing but numbers and strings.
            settings = self.settings.model_dump(exclude_defaults=True)
            given = {name: str(value) for name, value in settings.items()}
            accelerator.init_trackers("gqkva", {"folder": str(self.folder), **given})

    def _resume(self, trainer: Trainer) -> None:
        latest = self.run.latest()
        if latest is not None:
            trainer.resume(latest)
        if self.is_main:
            # Without a checkpoint the run begins again, and its first metrics come again, too.
            self.run.rewind(-1 if latest is None else trainer.progress.step)

    def _finish(self, trainer: Trainer) -> dict[str, Any]:
        progress = trainer.progress
        if not math.isfinite(progress.best_loss):
            raise TrainingError(
                "no held-out loss was finite after training, so nothing is written; use a smaller "
                "learning_rate or mixed_precision bf16"
            )
        if progress.left_out >= progress.step > 0:
            raise TrainingError(
                f"none of the {progress.step} steps was finite, so nothing was learned and nothing is "
                "written; use a smaller learning_rate or mixed_precision bf16"
            )
        weights = trainer.final_weights()
        training = self._describe(trainer)
        if self.is_main:
            write_result(self.job, load_student(self.folder), weights, training)
            terms = "+".join(self.assembly.weights)
            self.run.draw(trainer.teacher_loss, terms)
            self.run.finish(str(self.job.out))
            self.run.clear_checkpoints()
        trainer.accelerator.wait_for_everyone()
        return {"folder": str(self.job.out), "run_folder": str(self.run.path), **training.to_dict()}

    def _describe(self, trainer: Trainer) -> Training:
        progress = trainer.progress
        return Training(
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            versions=versions(),
            task=self.assembly.task,
            settings=self.settings.model_dump(exclude_defaults=True),
            learning_rate=trainer.schedule.rate,
            steps=progress.step,
            kept_step=trainer.kept_step,
            matching_steps=trainer.schedule.matching_steps,
            tokens=progress.tokens,
            distinct_rows=getattr(trainer.rows, "count", None),
            steps_left_out=progress.left_out,
            held_out_rows=len(trainer.rows.held_out),
            readings=[reading.to_dict() for reading in trainer.rows.readings],
            held_out_loss_before=progress.first_loss,
            held_out_loss=progress.best_loss,
            teacher_held_out_loss=trainer.teacher_loss,
            seconds=round(progress.seconds, 1),
            seconds_per_step=round(statistics.median(trainer.step_seconds or [0.0]), 5),
            processes=trainer.plan.processes,
            distributed_type=str(trainer.accelerator.distributed_type.value),
            mixed_precision=trainer.accelerator.mixed_precision,
            device=str(trainer.accelerator.device),
            metrics=str(self.run.path / METRICS),
        )
