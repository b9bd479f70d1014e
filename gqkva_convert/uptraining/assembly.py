"""What a run needs, made from its settings: model, teacher, rows, losses, optimiser, schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gqkva_convert.checkpoint.sidecars import REPORT
from gqkva_convert.data.tasks import CAUSAL, EMBEDDING, IMAGES, TO_TARGET, trained_task
from gqkva_convert.errors import TrainingError
from gqkva_convert.heads import ROLES
from gqkva_convert.plans.plan import Plan
from gqkva_convert.records.report import read_report
from gqkva_convert.uptraining.engine.feed import Feed
from gqkva_convert.uptraining.engine.processes import (
    divide_steps,
    make_accelerator,
    start_processes,
    use_liger,
)
from gqkva_convert.uptraining.engine.schedule import Schedule
from gqkva_convert.uptraining.engine.trainer import Trainer
from gqkva_convert.uptraining.job import Job
from gqkva_convert.uptraining.objectives.objective import VOCABULARY_TASKS, Objective
from gqkva_convert.uptraining.objectives.resampling import Resampling
from gqkva_convert.uptraining.objectives.runner import ModelRunner
from gqkva_convert.uptraining.objectives.teacher import StoredTeacher, is_stored, load_teacher
from gqkva_convert.uptraining.rows.batches import StepPlan
from gqkva_convert.uptraining.rows.reading import Collator, open_rows
from gqkva_convert.uptraining.rows.row import Rows
from gqkva_convert.uptraining.rows.stored import StoredRows
from gqkva_convert.uptraining.student import load_student
from gqkva_convert.uptraining.trainable import (
    choose_trained,
    drop_nothing,
    learning_rate,
    make_optimizer,
    matching_rate,
    parameter_groups,
)

# Share of the budget that matches attention blocks, where there is a teacher to match.
_MATCHING_SHARE = 0.5


class Assembly:
    """The pieces of one run, put together.

    Args:
        job: The run.

    Attributes:
        task: What the model is trained for, once `trainer` was called.
        weights: Weights of the loss terms, likewise.
    """

    task: str
    weights: dict[str, float]

    def __init__(self, job: Job) -> None:
        self.job, self.folder, self.settings = job, job.folder, job.settings

    def trainer(self) -> Trainer:
        """The loop with all it needs, loaded and tried.

        Raises:
            GqkvaError: Settings, model, teacher and data do not go together.
        """
        settings = self.settings
        torch.manual_seed(settings.seed)
        model = load_student(self.folder)
        self.task = task = trained_task(model)
        self.weights = weights = self._weights(task)
        self._check_resampled(task)
        plan = divide_steps(settings)
        with start_processes().local_main_process_first():  # it prepares rows, the others find them
            rows, collator = open_rows(settings, self.folder, model, task)
        self._check_learnable(rows, weights, plan)
        matching = self._matching_share(weights)
        accelerator = make_accelerator(
            plan,
            self.job,
            leaves_out_weights=matching > 0 or task == EMBEDDING or not {"task", "kl"} & weights.keys(),
        )
        stored = StoredTeacher(Path(str(settings.teacher))) if is_stored(settings.teacher) else None
        teacher = None
        if stored is not None:
            stored.check(getattr(rows, "digest", ""), model.config.vocab_size, settings.temperature)
        elif settings.teacher is not None:
            teacher = load_teacher(settings, self.folder, model, task, accelerator.device)
        schedule = self._schedule(rows, model, matching)
        if start_processes().is_main_process:
            for note in self._notes(rows, schedule.steps):
                self.job.watch({"note": note})
        student, optimizer = self._prepared(model)
        objective = self._objective(student, teacher, weights, watched=matching > 0)
        self._try_out(objective, rows, collator, accelerator.device)
        if settings.torch_compile:
            model.base_model.compile()
        feed = Feed(rows, collator, plan, stored, resampled=settings.resample > 0)
        trainer = Trainer(self.job, accelerator, objective, optimizer, feed, schedule)
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

    def _check_resampled(self, task: str) -> None:
        """Refuse to replace tokens where no teacher can say by what."""
        if not self.settings.resample:
            return
        if task != CAUSAL:
            raise TrainingError("resample is for causal language models, and this is none; leave it out")
        if is_stored(self.settings.teacher):
            raise TrainingError("resample needs the teacher, not its stored logits; name the source model")

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
            learning_rate(settings, model, is_fresh=self.job.from_scratch),
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
        runner = resampling = None
        if teacher is not None:
            runner = ModelRunner(
                teacher,
                has_head=self.task in VOCABULARY_TASKS,
                watched=watched or weights.get("attention", 0) > 0,
            )
            if self.settings.resample:
                resampling = Resampling(runner, self.settings.resample, self.settings.seed)
        return Objective(
            student,
            self.task,
            weights,
            runner,
            self.settings.temperature,
            watched=runner is not None and runner.watched,
            resampling=resampling,
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

    def _notes(self, rows: Rows, steps: int) -> Iterator[str]:
        """Where more is read than was asked for, or the same again and again."""
        settings, size = self.settings, rows.tokens_per_row
        unit = "images" if self.task == IMAGES else "rows"
        asked = self._budget_rows(rows)
        if settings.batch_size > math.ceil(asked * settings.num_train_epochs):
            of_tokens = f", {settings.batch_size * size:,.0f} tokens" if self.task != IMAGES else ""
            yield (
                f"a step reads {settings.batch_size:,} {unit}{of_tokens}: more than the budget; a smaller "
                "--batch-size keeps to it"
            )
        elif isinstance(rows, StoredRows) and rows.count < math.floor(asked):
            passes = steps * settings.batch_size / rows.count
            yield (
                f"{settings.data} gives {rows.count:,} {unit} to train on, fewer than the budget: they are "
                f"gone over {passes:.1f} times"
            )

    def _steps(self, rows: Rows) -> int:
        if self.task == IMAGES and self.settings.samples is None:
            raise TrainingError("images have no tokens; give --samples")
        wanted = self._budget_rows(rows) * self.settings.num_train_epochs
        return max(1, math.ceil(wanted / self.settings.batch_size))

    def _budget_rows(self, rows: Rows) -> float:
        """Rows of an epoch that the budget asks for."""
        tokens, samples = self.settings.token_budget, self.settings.samples
        return samples if samples is not None else (tokens or 0) / rows.tokens_per_row
