"""One training run, from its settings to its result."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gqkva_convert.architectures import FAMILIES, Family
from gqkva_convert.checkpoint.folder import open_checkpoint
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.sidecars import REPORT
from gqkva_convert.conversion.plan import Plan
from gqkva_convert.conversion.report import describe_files, read_report, versions
from gqkva_convert.data.tasks import EMBEDDING, IMAGES, TO_TARGET, trained_task
from gqkva_convert.errors import CheckpointError, TrainingError, first_line
from gqkva_convert.heads import ROLES
from gqkva_convert.modeling.families import MODEL_TYPE_PREFIX
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.uptraining.engine.accelerating import make_accelerator, start_processes, use_liger
from gqkva_convert.uptraining.engine.schedule import Schedule
from gqkva_convert.uptraining.engine.trainer import Trainer
from gqkva_convert.uptraining.objectives.objective import VOCABULARY_TASKS, Objective
from gqkva_convert.uptraining.objectives.running import ModelRunner
from gqkva_convert.uptraining.objectives.teacher import StoredTeacher, is_stored, load_teacher
from gqkva_convert.uptraining.result import write_result
from gqkva_convert.uptraining.rows.batches import StepPlan
from gqkva_convert.uptraining.rows.reading import Collator, open_rows
from gqkva_convert.uptraining.rows.row import Rows
from gqkva_convert.uptraining.run_folder import METRICS, RunFolder
from gqkva_convert.uptraining.settings import TrainingSettings
from gqkva_convert.uptraining.trainable import (
    choose_trained,
    drop_nothing,
    learning_rate,
    make_optimizer,
    matching_rate,
    parameter_groups,
)

Watch = Callable[[dict[str, Any]], None]
# Share of the budget that matches attention blocks, where there is a teacher to match.
_MATCHING_SHARE = 0.5
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


class Run:
    """The pieces of one run, put together.

    Args:
        folder: What is trained.
        out: Where the result goes.
        run: Folder of the run.
        settings: What to do.
        report_to: Trackers of Accelerate.
        watch: Called with the metrics of every step.
        from_scratch: Whether the weights are fresh.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        run: RunFolder,
        settings: TrainingSettings,
        report_to: tuple[str, ...],
        watch: Watch,
        *,
        from_scratch: bool = False,
    ) -> None:
        self.from_scratch = from_scratch
        self.folder = folder
        self.out = out
        self.run = run
        self.settings = settings
        self.report_to = report_to
        self.watch = watch

    def go(self, *, resume: bool, overwrite: bool) -> dict[str, Any]:
        state = start_processes()
        self.is_main, self.processes = state.is_main_process, state.num_processes
        with self.run.held() if self.is_main else contextlib.nullcontext():
            if self.is_main:
                self._open(resume, overwrite)
            state.wait_for_everyone()
            with self._fitting():
                trainer = self._trainer()
                if self.is_main and not resume:
                    self._begin(overwrite)
                state.wait_for_everyone()
                self._start_trackers(trainer.accelerator)
                if resume:
                    self._resume(trainer)
                trainer.run()
            result = self._finish(trainer, overwrite)
            trainer.accelerator.end_training()
        return result

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """Say what to do where a batch does not fit into memory."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
                raise
            plan, step = self._plan(), 2 if self.settings.mixup else 1
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

    def _open(self, resume: bool, overwrite: bool) -> None:
        if not resume:
            self.run.require_free(overwrite=overwrite)
        elif self.run.settings().get("files") != describe_files(open_checkpoint(self.folder)):
            raise TrainingError(
                f"{self.run.path} is a run on other weights than {self.folder} now holds; start anew with "
                "--overwrite"
            )

    def _begin(self, overwrite: bool) -> None:
        """Take the run's folder, once all that is read has been opened: an earlier run may be in it."""
        self.run.begin(
            {
                "folder": str(self.folder),
                "files": describe_files(open_checkpoint(self.folder)),
                "settings": self.settings.model_dump(exclude_defaults=True),
                "overwrite": overwrite,
                "from_scratch": self.from_scratch,
                "any_model": not (self.folder / REPORT).is_file(),
                "report_to": list(self.report_to),
            },
            overwrite=overwrite,
        )

    def _start_trackers(self, accelerator: Any) -> None:
        if self.report_to:
            # Some trackers take nothing but numbers and words.
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

    def _trainer(self) -> Trainer:
        settings = self.settings
        torch.manual_seed(settings.seed)
        model = load_student(self.folder)
        self.task = task = trained_task(model)
        weights = self._weights(task)
        plan = self._plan()
        with start_processes().local_main_process_first():  # it prepares rows, the others find them
            rows, collator = open_rows(settings, self.folder, model, task)
        self._check_learnable(rows, weights, plan)
        matching = self._matching_share(weights)
        accelerator = make_accelerator(
            settings,
            plan,
            self.run.path,
            self.report_to,
            leaves_out_weights=matching > 0 or task == EMBEDDING or not {"task", "kl"} & weights.keys(),
        )
        stored = StoredTeacher(Path(str(settings.teacher))) if is_stored(settings.teacher) else None
        teacher = None
        if stored is not None:
            stored.check(getattr(rows, "digest", ""), model.config.vocab_size, settings.temperature)
        elif settings.teacher is not None:
            teacher = load_teacher(settings, self.folder, model, task, accelerator.device)
        schedule = self._schedule(rows, model, matching)
        student, optimizer = self._prepared(model)
        objective = self._objective(student, teacher, weights, watched=matching > 0)
        self._try_out(objective, rows, collator, accelerator.device)
        if settings.torch_compile:
            model.base_model.compile()

        def collate(some: list[Any], numbers: list[int]) -> Any:
            batch = collator.batch(some, numbers)
            return {**batch, **stored.of(some)} if stored is not None and numbers else batch

        trainer = Trainer(
            accelerator, objective, optimizer, rows, collate, plan, schedule, settings, self.run, self.watch
        )
        if stored is not None:
            # Measured on other rows it would be no measure.
            is_same = stored.note.get("held_out") == settings.held_out
            trainer.teacher_loss = stored.held_out_loss if is_same else None
        elif teacher is not None:
            alone = Objective(teacher, task, {"task": 1.0})
            trainer.teacher_loss = trainer.measured(alone, alone) if task != EMBEDDING else 0.0
        if settings.stop_within is not None and not trainer.teacher_loss:
            raise TrainingError(
                "stop_within needs the teacher's loss on the same held-out rows, and there is none here; "
                "leave it out"
            )
        return trainer

    def _check_learnable(self, rows: Rows, weights: dict[str, float], plan: StepPlan) -> None:
        """Refuse rows that an encoder without a head cannot learn from."""
        if self.task != EMBEDDING:
            return
        first = rows.held_out[0]
        if self.settings.teacher is None and "second_ids" not in first:
            raise TrainingError("an encoder without a head needs pairs of texts, or a teacher")
        is_scored = not math.isnan(first.get("score", 0.0))
        if not is_scored and weights.get("task") and plan.per_device < 2:
            raise TrainingError(
                "pairs without scores are told from the others of a forward pass: give at least 2 rows to one"
            )

    def _schedule(self, rows: Rows, model: Any, matching: float) -> Schedule:
        """Learning rates of the run's steps, of which the first may match blocks."""
        settings, steps = self.settings, self._steps(rows)
        matching_steps = min(steps - 1, round(matching * steps))
        return Schedule(
            steps,
            matching_steps,
            settings.lr_scheduler_type,
            math.ceil(settings.warmup_ratio * (steps - matching_steps)),
            learning_rate(settings, model, is_fresh=self.from_scratch),
            matching_rate(settings, model),
        )

    def _prepared(self, model: Any) -> tuple[Any, Any]:
        """The student, changed and frozen as it is trained, and its optimiser."""
        settings = self.settings
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if settings.liger:
            use_liger(model)
        if settings.teacher is not None:
            drop_nothing(model)
        student = choose_trained(model, settings)
        return student, make_optimizer(parameter_groups(student, settings, self._merged_roles()), settings)

    def _objective(
        self, student: Any, teacher: Any, weights: dict[str, float], *, watched: bool
    ) -> Objective:
        """The student's losses; ``watched`` where blocks are matched one by one."""
        runner = None
        if teacher is not None:
            runner = ModelRunner(
                teacher,
                has_head=self.task in VOCABULARY_TASKS,
                watched=watched or weights.get("attention", 0) > 0,
            )
        return Objective(
            student,
            self.task,
            weights,
            runner,
            self.settings.temperature,
            watched=runner is not None and runner.watched,
        )

    def _try_out(self, objective: Objective, rows: Rows, collator: Collator, device: torch.device) -> None:
        """Run some held-out rows, which tell whether the head is known and how large blocks answer."""
        if self.task in VOCABULARY_TASKS:
            objective.runner.check_head(collator.batch(rows.held_out[:1], []))
        if objective.runner.watched:
            objective.measure_energies(
                {name: value.to(device) for name, value in collator.batch([row], []).items()}
                for row in rows.held_out[:16]
            )

    def _weights(self, task: str) -> dict[str, float]:
        """Weights of the loss terms, or what suits the task."""
        settings = self.settings
        if task == TO_TARGET and settings.loss.get("hidden"):
            raise TrainingError("hidden is not for sequence-to-sequence models; use attention or kl")
        if settings.loss:
            if task == EMBEDDING and settings.loss.get("kl"):
                raise TrainingError("kl compares logits, which this model does not have; use hidden")
            return dict(settings.loss)
        if settings.teacher is None:
            return {"task": 1.0}
        return {"hidden": 1.0} if task == EMBEDDING else {"kl": 1.0}

    def _matching_share(self, weights: dict[str, float]) -> float:
        settings = self.settings
        if is_stored(settings.teacher):
            needs = [name for name in ("hidden", "attention") if weights.get(name)]
            if needs or settings.matching:
                raise TrainingError(
                    f"{', '.join(needs) or 'matching'} needs the teacher itself, not its stored logits; name "
                    "the source model"
                )
            return 0.0
        if settings.matching is not None:
            return settings.matching
        can_match = settings.teacher is not None and settings.train in ("all", "attention")
        return _MATCHING_SHARE if can_match else 0.0

    def _merged_roles(self) -> tuple[str, ...]:
        if not (self.folder / REPORT).is_file():
            return ()
        plan = Plan.from_dict(read_report(self.folder)["plan"])
        return tuple(
            role
            for role in ROLES
            if any(len(group) > 1 for block in plan.blocks for group in block.groups(role))
        )

    def _steps(self, rows: Rows) -> int:
        tokens, samples = self.settings.token_budget, self.settings.samples
        if self.task == IMAGES and samples is None:
            raise TrainingError("images have no tokens; give --samples")
        wanted = samples if samples is not None else (tokens or 0) / rows.tokens_per_row
        return max(1, math.ceil(wanted * self.settings.num_train_epochs / self.settings.batch_size))

    def _plan(self) -> StepPlan:
        processes, batch = self.processes, self.settings.batch_size
        if batch % processes:
            raise TrainingError(
                f"batch_size {batch} cannot be divided over {processes} processes; "
                f"choose a multiple of {processes}"
            )
        per_device = self.settings.per_device_batch_size or batch // processes
        if (batch // processes) % per_device:
            raise TrainingError(
                f"batch_size {batch} over {processes} processes is {batch // processes} rows each, which "
                f"per_device_batch_size {per_device} does not divide"
            )
        if self.settings.mixup and per_device % 2:
            raise TrainingError(
                f"mixup mixes images two by two, and a pass has {per_device} rows; choose an even batch_size "
                "and per_device_batch_size"
            )
        return StepPlan(batch, per_device, processes)

    def _finish(self, trainer: Trainer, overwrite: bool) -> dict[str, Any]:
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
            write_result(
                self.folder,
                self.out,
                load_student(self.folder),
                weights,
                self.settings,
                training,
                overwrite=overwrite,
            )
            terms = "+".join(self._weights(self.task))
            self.run.draw(trainer.teacher_loss, terms)
            self.run.clear_checkpoints()
            self.run.finish(str(self.out))
        trainer.accelerator.wait_for_everyone()
        return {"folder": str(self.out), "run_folder": str(self.run.path), **training}

    def _describe(self, trainer: Trainer) -> dict[str, Any]:
        progress = trainer.progress
        return {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": versions(),
            "task": self.task,
            "settings": self.settings.model_dump(exclude_defaults=True),
            "learning_rate": trainer.schedule.rate,
            "steps": progress.step,
            "kept_step": trainer.kept_step,
            "matching_steps": trainer.schedule.matching_steps,
            "tokens": progress.tokens,
            "steps_left_out": progress.left_out,
            "held_out_rows": len(trainer.rows.held_out),
            "held_out_loss_before": progress.first_loss,
            "held_out_loss": progress.best_loss,
            "teacher_held_out_loss": trainer.teacher_loss,
            "seconds": round(progress.seconds, 1),
            "seconds_per_step": round(statistics.median(trainer.step_seconds or [0.0]), 5),
            "processes": trainer.plan.processes,
            "distributed_type": str(trainer.accelerator.distributed_type.value),
            "mixed_precision": trainer.accelerator.mixed_precision,
            "device": str(trainer.accelerator.device),
            "metrics": str(self.run.path / METRICS),
        }


def load_student(folder: Path) -> Any:
    """The model of a folder, in float32, as it is trained.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    family = family_of(folder)
    try:
        return load_model(folder, family.architecture)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers cannot load it: {first_line(error)}") from error


def family_of(folder: Path) -> Family:
    """The family of a checkpoint folder.

    Raises:
        CheckpointError: It is of none that is known.
    """
    model_type = str(read_json(folder / "config.json").get("model_type")).removeprefix(MODEL_TYPE_PREFIX)
    if model_type not in FAMILIES:
        raise CheckpointError(f"{folder}: no family {model_type!r}; known are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]
