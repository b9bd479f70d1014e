"""The training loop, on Accelerate: one process or many, the same rows and the same loss."""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from gqkva_convert.checkpoint.jsonfile import read_json, write_json
from gqkva_convert.data.names import fingerprint
from gqkva_convert.errors import Terminated, TrainingError, first_line
from gqkva_convert.uptraining.ahead import BatchesAhead, prepares_ahead
from gqkva_convert.uptraining.batches import Batch, Counts, StepPlan, count
from gqkva_convert.uptraining.hardware import peak_flops
from gqkva_convert.uptraining.objective import Objective
from gqkva_convert.uptraining.rows import Row, Rows, StoredRows
from gqkva_convert.uptraining.run_folder import RunFolder
from gqkva_convert.uptraining.schedule import Schedule
from gqkva_convert.uptraining.settings import TrainingSettings
from gqkva_convert.uptraining.stepping import make_stepper
from gqkva_convert.uptraining.weights import Average

# Makes a batch of rows; without numbers nothing is drawn at random.
Collate = Callable[[list[Row], list[int]], Batch]
Watch = Callable[[dict[str, Any]], None]
# Steps in a row that fp16's scaler leaves out before a run stops: from 65,536 it is then far below 1.
OVERFLOW_LIMIT = 32
# Steps whose time is remembered.
_STEPS_TIMED = 10_000
STATE, ROWS_STATE = "trainer.json", "rows.pt"


@dataclass
class Progress:
    """How far a run is; kept with every checkpoint.

    Attributes:
        step: Steps done.
        tokens: Tokens trained on.
        seconds: Spent on it, earlier parts of an interrupted run included.
        left_out: Steps left out because their loss was not finite.
        best_loss: Least held-out loss, and the step it was measured at.
        reached: Whether the target is met, so that nothing is left to do.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    left_out: int = 0
    best_loss: float = math.inf
    best_step: int = -1
    reached: bool = False


class Trainer:
    """Trains an objective on rows.

    Args:
        accelerator: Accelerate's, which says how work is divided.
        objective: The student with its losses.
        optimizer: Of the student's weights.
        rows: The data.
        collate: Makes batches.
        plan: How rows are divided.
        schedule: Learning rates.
        settings: Of the run.
        folder: Of the run.
        watch: Called on the main process with the metrics of every step.
    """

    def __init__(
        self,
        accelerator: Any,
        objective: Objective,
        optimizer: Any,
        rows: Rows,
        collate: Collate,
        plan: StepPlan,
        schedule: Schedule,
        settings: TrainingSettings,
        folder: RunFolder,
        watch: Watch,
    ) -> None:
        self.accelerator = accelerator
        self.rows = rows
        self.collate = collate
        self.plan = plan
        self.schedule = schedule
        self.settings = settings
        self.folder = folder
        self.watch = watch
        self.progress = Progress()
        self.overflows = 0
        self.parameters = sum(parameter.numel() for parameter in objective.student.parameters())
        self.plain = objective
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        objective.is_sharded = any(hasattr(value, "to_local") for value in self.objective.parameters())
        self.stepper = make_stepper(accelerator, self.objective, self.optimizer, settings.max_grad_norm)
        self.stepper.fill_state()
        self.average = None if settings.ema is None else Average(self.objective, settings.ema)
        self.teacher_loss: float | None = None
        self.first_loss: float | None = None
        self.kept_step = 0
        # How long the last steps took, measurements and checkpoints left out.
        self.step_seconds: deque[float] = deque(maxlen=_STEPS_TIMED)
        self._stop: int | None = None
        self._data = [fingerprint(settings.data), fingerprint(settings.held_out)]
        # A stream tells where it stands after each step, so that nothing may be read ahead of it.
        works_ahead = isinstance(rows, StoredRows) and prepares_ahead(accelerator.device)
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
        with self._signals():
            while self.progress.step < self.schedule.steps and not done:
                self._step()
                step = self.progress.step
                is_last = step == self.schedule.steps
                if step % evaluate_every == 0 or is_last:
                    done = self.progress.reached = self._measure()
                stopped = self._agreed_to_stop()
                if stopped or done or is_last or step % save_every == 0 or self.progress.best_step == step:
                    self.save()
                if stopped and not (done or is_last):
                    self._end_early()
        best = self.folder.of_step(self.progress.best_step)
        self.kept_step = self.progress.step
        if best is not None and self.progress.best_step != self.progress.step:
            spent = self.progress
            self.load(best)
            self.progress, self.kept_step = spent, self.progress.step

    def _step(self) -> None:
        """One step: forward and backward passes of all its rows, then the optimiser."""
        started = time.perf_counter()
        step, matching = self.progress.step, self.progress.step < self.schedule.matching_steps
        batches = [self._batch(step, number) for number in range(self.plan.accumulation)]
        self.rows.seek((step + 1) * self.plan.batch_size)
        items, positions = self._summed([sum(getattr(count(b), name) for b in batches) for name in _COUNTS])
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
        found = dict(zip(names, self._summed([sums[name] for name in names]), strict=True))
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
        self._report(found, counts, rate, norm, seconds, finite)

    def _batch(self, step: int, number: int) -> Batch:
        batch = self._made(step, number) if self.ahead is None else self.ahead.take((step, number))
        return {name: value.to(self.accelerator.device) for name, value in batch.items()}

    def _made(self, step: int, number: int) -> Batch:
        numbers = list(self.plan.numbers(step, number, self.accelerator.process_index))
        return self.collate([self.rows.row(row) for row in numbers], numbers)

    def _after(self, step: int, number: int) -> tuple[int, int] | None:
        step, number = divmod(step * self.plan.accumulation + number + 1, self.plan.accumulation)
        return (step, number) if step < self.schedule.steps else None

    def _overflowed(self) -> None:
        """Now and then fp16's gradients overflow, and its scaler halves their scale; not for ever."""
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

    def _report(
        self,
        found: dict[str, float],
        counts: Counts,
        rate: float,
        norm: float | None,
        seconds: float,
        finite: bool,
    ) -> None:
        if not self.accelerator.is_main_process:
            return
        speed = counts.positions / seconds
        entry: dict[str, Any] = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "seconds": round(self.progress.seconds, 3),
            **found,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens_per_second": round(speed, 1),
        }
        peak = peak_flops(self.accelerator.device)
        if peak is not None:
            entry["mfu"] = round(6 * self.parameters * speed / (peak * self.plan.processes), 4)
        if not finite:
            entry["left_out"] = True
        self._write(entry)

    def _write(self, entry: dict[str, Any]) -> None:
        self.folder.write_metrics(entry)
        numbers = {name: value for name, value in entry.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=self.progress.step)
        self.watch({**entry, "steps": self.schedule.steps})

    def _measure(self, *, first: bool = False) -> bool:
        """Measure on held-out rows; says whether the target is met."""
        started = time.perf_counter()
        with self._averaged():
            loss = self.held_out_loss(self.objective)
        self.progress.seconds += time.perf_counter() - started
        if first:
            self.first_loss = loss
        if self.accelerator.is_main_process:
            self._write(
                {
                    "step": self.progress.step,
                    "tokens": self.progress.tokens,
                    "seconds": round(self.progress.seconds, 3),
                    "held_out_loss": loss,
                }
            )
        within, teacher = self.settings.stop_within, self.teacher_loss
        reached = within is not None and teacher is not None and loss <= teacher * (1 + within)
        # What training began with is no result of it, unless there is nothing to do.
        if loss < self.progress.best_loss and (reached or not first):
            self.progress.best_loss, self.progress.best_step = loss, self.progress.step
        return reached

    def _averaged(self) -> AbstractContextManager[None]:
        """Let the student have the mean of its weights, where one is kept."""
        return nullcontext() if self.average is None else self.average.in_place()

    @torch.no_grad()
    def held_out_loss(self, objective: Any) -> float:
        """Mean loss over the held-out rows, each process a part of them."""
        objective.eval()
        plain = self.plain if objective is self.objective else objective
        rows, per_pass, processes = self.rows.held_out, self.plan.per_device, self.plan.processes
        total = torch.zeros(2, dtype=torch.float64)
        # All processes run equally many passes, or sharded weights would wait for each other.
        for start in range(0, len(rows), per_pass * processes):
            mine = start + self.accelerator.process_index * per_pass
            some = rows[mine : mine + per_pass]
            batch = self.collate(some or rows[:1], [])
            batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
            objective(batch, Counts(1, 1), "held_out")
            measured = plain.last
            if some:
                counted = objective_items(batch, measured)
                total += torch.tensor([float(measured["loss"]), counted], dtype=torch.float64)
        summed, items = self._summed(list(total))
        return summed / max(items, 1.0)

    def _summed(self, values: list[Any]) -> list[float]:
        """Numbers summed over processes."""
        stacked = torch.stack([torch.as_tensor(value, dtype=torch.float64).cpu() for value in values])
        if self.plan.processes > 1:
            on_device = stacked.float() if self.accelerator.device.type == "mps" else stacked
            reduced = self.accelerator.reduce(on_device.to(self.accelerator.device), "sum")
            stacked = reduced.cpu()
        return [float(value) for value in stacked]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first SIGINT or SIGTERM end the run after the step; the second ends it at once."""
        before = {}

        def ask(number: int, frame: FrameType | None) -> None:
            if self._stop is not None:
                raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
            self._stop = number

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, ask)
        except ValueError:  # not the main thread: whoever runs us handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _agreed_to_stop(self) -> bool:
        """Whether any process was asked to stop."""
        if self.plan.processes == 1:
            return self._stop is not None
        numbers = self._summed([float(self._stop or 0)])
        if numbers[0] and self._stop is None:
            self._stop = signal.SIGTERM
        return bool(numbers[0])

    def _end_early(self) -> None:
        self.watch({"stopped": self.progress.step, "steps": self.schedule.steps})
        raise Terminated if self._stop == signal.SIGTERM else KeyboardInterrupt

    def save(self) -> None:
        """Write a checkpoint; it has its name only when it is complete. None is made of weights gone bad."""
        if not self._is_sound():
            return
        scratch = self.folder.checkpoints / f".step-{self.progress.step:09d}.new"
        if self.accelerator.is_main_process:
            self.folder.scratch(self.progress.step)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(scratch))
        if self.average is not None:
            torch.save(self.average.state(), scratch / f"average-{self.accelerator.process_index}.pt")
        if self.accelerator.is_main_process:
            torch.save(self.rows.state(), scratch / ROWS_STATE)
            state = {**vars(self.progress), "first_loss": self.first_loss, **self._identity()}
            write_json(scratch / STATE, state)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.folder.keep(scratch, self.settings.save_total_limit, self.progress.best_step)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def _is_sound(self) -> bool:
        """Whether all weights are finite, in every process."""
        bad = 0.0
        for weight in self.objective.parameters():
            mine = weight.to_local() if hasattr(weight, "to_local") else weight
            bad += float(not torch.isfinite(mine).all())
        return self._summed([bad])[0] == 0

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: It is damaged.
        """
        try:
            state = read_json(checkpoint / STATE)
            self.first_loss = state.pop("first_loss")
            found = {name: state.pop(name) for name in self._identity()}
            self._check_identity(found, checkpoint)
            self.progress = Progress(**state)
            self.accelerator.load_state(str(checkpoint))
            self.rows.restore(torch.load(checkpoint / ROWS_STATE, weights_only=True))
            if self.average is not None:
                file = checkpoint / f"average-{self.accelerator.process_index}.pt"
                self.average.restore(torch.load(file, weights_only=True))
        except (TrainingError, torch.OutOfMemoryError):
            raise
        except (Exception, CheckpointException) as error:  # each part has a reader with errors of its own
            raise TrainingError(
                f"{checkpoint} is damaged ({first_line(error)}); remove it, and --resume goes on from the "
                "one before"
            ) from error

    def _identity(self) -> dict[str, Any]:
        """What must be as it was for a run to go on as it was."""
        return {
            "processes": self.plan.processes,
            "rows": getattr(self.rows, "digest", ""),
            "data": self._data,
        }

    def _check_identity(self, found: dict[str, Any], checkpoint: Path) -> None:
        if found["processes"] != self.plan.processes:
            raise TrainingError(
                f"{checkpoint} is of {found['processes']} processes, these are {self.plan.processes}; go on "
                "with as many as before"
            )
        if any(found[name] != self._identity()[name] for name in ("rows", "data")):
            raise TrainingError(
                f"the data have changed since {checkpoint} was written; restore them, or start anew "
                "with --overwrite"
            )

    def final_weights(self) -> dict[str, Tensor]:
        """The student's weights, gathered; empty on other processes than the main one."""
        with self._averaged():
            state = self.stepper.weights()
        prefix = "student."
        return {
            name.removeprefix("module.").removeprefix(prefix): value
            for name, value in state.items()
            if name.removeprefix("module.").startswith(prefix)
        }


_COUNTS = ("items", "positions")


def objective_items(batch: Batch, terms: dict[str, Tensor]) -> int:
    """Over how many items the measured term of a batch is summed."""
    found = count(batch)
    return found.items if "task" in terms else found.positions
