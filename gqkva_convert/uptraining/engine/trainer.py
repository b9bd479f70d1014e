"""The training loop, on Accelerate: one process or many, the same rows and the same loss."""

from __future__ import annotations

import math
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from gqkva_convert.errors import TrainingError
from gqkva_convert.uptraining.engine.average import Average
from gqkva_convert.uptraining.engine.checkpoints import Checkpoints, Progress
from gqkva_convert.uptraining.engine.feed import Feed
from gqkva_convert.uptraining.engine.hardware import peak_flops
from gqkva_convert.uptraining.engine.held_out import held_out_loss
from gqkva_convert.uptraining.engine.prefetch import BatchesAhead, prepares_ahead
from gqkva_convert.uptraining.engine.processes import summed
from gqkva_convert.uptraining.engine.schedule import Schedule
from gqkva_convert.uptraining.engine.stepper import make_stepper
from gqkva_convert.uptraining.engine.stop import StopRequest
from gqkva_convert.uptraining.job import Job
from gqkva_convert.uptraining.objectives.objective import Objective
from gqkva_convert.uptraining.rows.batches import Batch, Counts, count
from gqkva_convert.uptraining.rows.stored import StoredRows

# Steps in a row that fp16's scaler leaves out before a run stops: from 65,536 it is then far below 1.
OVERFLOW_LIMIT = 32
# Steps whose time is remembered.
_STEPS_TIMED = 10_000


class Trainer:
    """Trains an objective on rows.

    Args:
        job: The run.
        accelerator: Accelerate's, which says how work is divided.
        objective: The student with its losses.
        optimizer: Of the student's weights.
        feed: Makes the batches.
        schedule: Learning rates.
    """

    def __init__(
        self, job: Job, accelerator: Any, objective: Objective, optimizer: Any, feed: Feed, schedule: Schedule
    ) -> None:
        self.job, self.settings, self.folder = job, job.settings, job.run
        self.accelerator = accelerator
        self.feed, self.rows, self.plan = feed, feed.rows, feed.plan
        self.schedule = schedule
        self.progress = Progress()
        self.overflows = 0
        self.parameters = sum(parameter.numel() for parameter in objective.student.parameters())
        self.plain = objective
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        objective.is_sharded = any(hasattr(value, "to_local") for value in self.objective.parameters())
        self.stepper = make_stepper(accelerator, self.objective, self.optimizer, self.settings.max_grad_norm)
        self.stepper.fill_state()
        ema = self.settings.ema
        self.average = None if ema is None else Average(self.objective, ema)
        self.teacher_loss: float | None = None
        self.kept_step = 0
        # How long the last steps took, measurements and checkpoints left out.
        self.step_seconds: deque[float] = deque(maxlen=_STEPS_TIMED)
        self.stop = StopRequest(accelerator)
        self.checkpoints = Checkpoints(job, accelerator, self.objective, self.rows, self.average)
        # A stream's position is saved after each step, so that nothing may be read ahead of it.
        works_ahead = isinstance(self.rows, StoredRows) and prepares_ahead(accelerator.device)
        self.ahead = BatchesAhead(self._made, self._after) if works_ahead else None

    def run(self) -> None:
        """Train until the budget is spent, a target is met, or somebody stops it.

        Raises:
            TrainingError: Too many losses were not finite.
            KeyboardInterrupt: It was stopped; a checkpoint was written.
        """
        evaluate_every = self.settings.evaluation_steps or max(1, self.schedule.steps // 10)
        save_every = self.settings.save_steps or evaluate_every
        done = self.progress.reached or (self.progress.step == 0 and self._measure(first=True))
        with self.stop.awaited():
            while self.progress.step < self.schedule.steps and not done:
                self._step()
                step = self.progress.step
                is_last = step == self.schedule.steps
                if step % evaluate_every == 0 or is_last:
                    done = self.progress.reached = self._measure()
                stopped = self.stop.agreed()
                if stopped or done or is_last or step % save_every == 0 or self.progress.best_step == step:
                    self.checkpoints.save(self.progress)
                if stopped and not (done or is_last):
                    self.job.watch({"stopped": step, "steps": self.schedule.steps})
                    self.stop.raise_()
        best = self.folder.of_step(self.progress.best_step)
        self.kept_step = self.progress.step
        if best is not None and self.progress.best_step != self.progress.step:
            self.kept_step = self.checkpoints.load(best).step

    def _step(self) -> None:
        """Do one step: forward and backward passes of all its rows, then the optimiser."""
        started = time.perf_counter()
        step, matching = self.progress.step, self.progress.step < self.schedule.matching_steps
        batches = [self._batch(step, number) for number in range(self.plan.accumulation)]
        self.rows.seek((step + 1) * self.plan.batch_size)
        here = [count(batch) for batch in batches]
        items, positions = summed(
            self.accelerator, [sum(c.items for c in here), sum(c.positions for c in here)]
        )
        counts = Counts(max(1, int(items)), max(1, int(positions)))
        rate = self.schedule.at(step)
        for group in self.optimizer.param_groups:
            is_trained = group["attention"] or not matching
            group["lr"] = rate * group["rate"] if is_trained else 0.0
        # Accelerate and its back ends average over passes and processes; the losses are shares of a sum.
        scale = self.plan.accumulation * self.plan.processes
        sums: dict[str, Any] = {}
        self.objective.train()
        for batch in batches:
            with self.accelerator.accumulate(self.objective):
                loss = self.objective(batch, counts, "matching" if matching else "train")
                self.accelerator.backward(loss * scale)
            for name, value in self.plain.last.items():
                sums[name] = sums.get(name, 0.0) + value
        names = sorted(sums)
        found = dict(zip(names, summed(self.accelerator, [sums[name] for name in names]), strict=True))
        norm, finite = self.stepper.step(found["loss"], matching=matching)
        if self.average is not None and (finite or self.accelerator.mixed_precision == "fp16"):
            self.average.update()
        self.progress.step += 1
        self.progress.tokens += counts.positions
        seconds = time.perf_counter() - started
        self.progress.seconds += seconds
        self.step_seconds.append(seconds)
        if not finite and self.accelerator.mixed_precision == "fp16" and math.isfinite(found["loss"]):
            self._overflowed()
        elif not finite:
            self._leave_out(found["loss"], norm)
        else:
            self.overflows = 0
        speed = counts.positions / seconds
        entry = {**found, "learning_rate": rate, "grad_norm": norm, "tokens_per_second": round(speed, 1)}
        peak = peak_flops(self.accelerator.device)
        if peak is not None:
            entry["mfu"] = round(6 * self.parameters * speed / (peak * self.plan.processes), 4)
        self._write(entry if finite else {**entry, "left_out": True})

    def _batch(self, step: int, number: int) -> Batch:
        batch = self._made(step, number) if self.ahead is None else self.ahead.take((step, number))
        return {name: value.to(self.accelerator.device) for name, value in batch.items()}

    def _made(self, step: int, number: int) -> Batch:
        return self.feed.batch(step, number, self.accelerator.process_index)

    def _after(self, step: int, number: int) -> tuple[int, int] | None:
        step, number = divmod(step * self.plan.accumulation + number + 1, self.plan.accumulation)
        return (step, number) if step < self.schedule.steps else None

    def _overflowed(self) -> None:
        """Count fp16's overflows, each of which halves its scaler's scale; stop the run after many."""
        self.overflows += 1
        if self.overflows >= OVERFLOW_LIMIT:
            raise TrainingError(
                f"fp16 gradients overflowed in {self.overflows} steps one after the other, up to step "
                f"{self.progress.step}; use mixed_precision bf16 or a smaller learning_rate"
            )

    def _leave_out(self, loss: float, norm: float | None) -> None:
        self.progress.left_out += 1
        if self.progress.left_out >= self.settings.nan_limit:
            last = self.folder.latest()
            kept = f"the last good state is {last}" if last else "no checkpoint was written yet"
            raise TrainingError(
                f"loss {loss}, gradient {norm} at step {self.progress.step}: {self.progress.left_out} steps "
                f"were not finite and left out; {kept}; use a smaller learning_rate or mixed_precision bf16"
            )

    def _write(self, found: dict[str, Any]) -> None:
        """Write what was found at this step, on the main process."""
        if not self.accelerator.is_main_process:
            return
        progress = self.progress
        done = {"step": progress.step, "tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
        entry = {**done, **found}
        self.folder.write_metrics(entry)
        numbers = {name: value for name, value in entry.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=self.progress.step)
        self.job.watch({**entry, "steps": self.schedule.steps})

    def _measure(self, *, first: bool = False) -> bool:
        """Measure on held-out rows; return whether the target is met."""
        started = time.perf_counter()
        with self._averaged():
            loss = self.measured(self.objective, self.plain)
        self.progress.seconds += time.perf_counter() - started
        if first:
            self.progress.first_loss = loss
        self._write({"held_out_loss": loss})
        within, teacher = self.settings.stop_within, self.teacher_loss
        reached = within is not None and teacher is not None and loss <= teacher * (1 + within)
        # What training began with is no result of it, unless there is nothing to do.
        if loss < self.progress.best_loss and (reached or not first):
            self.progress.best_loss, self.progress.best_step = loss, self.progress.step
        return reached

    def _averaged(self) -> AbstractContextManager[None]:
        """Replace the student's weights by their mean within a ``with`` block, where one is kept."""
        return nullcontext() if self.average is None else self.average.in_place()

    def measured(self, objective: Any, plain: Objective) -> float:
        """Measure an objective's mean loss over the held-out rows; arguments as those of `held_out_loss`."""
        return held_out_loss(self.accelerator, objective, plain, self.feed)

    def resume(self, checkpoint: Path) -> None:
        """Resume from a checkpoint.

        Raises:
            TrainingError: It is damaged, or of another run.
        """
        self.progress = self.checkpoints.load(checkpoint)

    def final_weights(self) -> dict[str, Tensor]:
        """Gather the student's weights; empty on other processes than the main one."""
        with self._averaged():
            state = self.stepper.weights()
        prefix = "student."
        return {
            name.removeprefix("module.").removeprefix(prefix): value
            for name, value in state.items()
            if name.removeprefix("module.").startswith(prefix)
        }
