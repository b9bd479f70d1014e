"""The pieces of a run, made from its settings: model, teacher, rows, losses, optimiser, schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gqkva_convert.checkpoint.sidecars import REPORT
from gqkva_convert.data.tasks import EMBEDDING, trained_task
from gqkva_convert.errors import TrainingError
from gqkva_convert.heads import ROLES
from gqkva_convert.plans.plan import Plan
from gqkva_convert.records.report import read_report
from gqkva_convert.uptraining.budget import budget_note, make_schedule
from gqkva_convert.uptraining.engine.feed import Feed
from gqkva_convert.uptraining.engine.processes import (
    divide_steps,
    make_accelerator,
    start_processes,
    use_liger,
)
from gqkva_convert.uptraining.engine.trainer import Trainer
from gqkva_convert.uptraining.job import Job
from gqkva_convert.uptraining.objectives.objective import VOCABULARY_TASKS, Objective
from gqkva_convert.uptraining.objectives.resampling import Resampling
from gqkva_convert.uptraining.objectives.runner import ModelRunner
from gqkva_convert.uptraining.objectives.teacher import StoredTeacher, is_stored, load_teacher
from gqkva_convert.uptraining.rows.reading import Collator, open_rows
from gqkva_convert.uptraining.rows.row import Rows
from gqkva_convert.uptraining.terms import check_pairs, check_resampled, loss_weights, matching_share
from gqkva_convert.uptraining.trainable import (
    choose_trained,
    drop_nothing,
    load_student,
    make_optimizer,
    parameter_groups,
)


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
        """Load and try all that the training loop needs, and return the loop.

        Raises:
            GqkvaError: Settings, model, teacher and data do not go together.
        """
        settings = self.settings
        torch.manual_seed(settings.seed)
        model = load_student(self.folder)
        self.task = task = trained_task(model)
        self.weights = weights = loss_weights(settings, task)
        check_resampled(settings, task)
        plan = divide_steps(settings)
        with start_processes().local_main_process_first():  # it prepares rows, the others find them
            rows, collator = open_rows(settings, self.folder, model, task)
        if task == EMBEDDING:
            check_pairs(settings, rows, weights, plan)
        matching = matching_share(settings, weights)
        accelerator = make_accelerator(
            plan,
            self.job,
            leaves_out_weights=matching > 0 or task == EMBEDDING or not {"task", "kl"} & weights.keys(),
        )
        stored = StoredTeacher(Path(str(settings.teacher))) if is_stored(settings.teacher) else None
        teacher = None
        if stored is not None:
            stored.check(rows.digest, model.config.vocab_size, settings.temperature)
        elif settings.teacher is not None:
            teacher = load_teacher(settings, self.folder, model, accelerator.device)
        schedule = make_schedule(self.job, rows, model, task, matching)
        note = budget_note(settings, rows, task, schedule.steps)
        if start_processes().is_main_process:
            said = [reading.describe() for reading in rows.readings]
            for text in (*said, *([] if note is None else [note])):
                self.job.watch({"note": text})
        student, optimizer = self._prepared(model)
        objective = self._objective(student, teacher, watched=matching > 0)
        self._try_out(objective, rows, collator, accelerator.device)
        if settings.torch_compile:
            model.base_model.compile()
        feed = Feed(rows, collator, plan, stored, resampled=settings.resample > 0)
        trainer = Trainer(self.job, accelerator, objective, optimizer, feed, schedule)
        if stored is not None:
            # Measured on other rows it would be no measure.
            is_same = stored.note.get("held_out") == settings.held_out
            trainer.teacher_loss = float(stored.note["held_out_loss"]) if is_same else None
        elif teacher is not None:
            alone = Objective(teacher, task, {"task": 1.0})
            trainer.teacher_loss = trainer.measured(alone, alone) if task != EMBEDDING else 0.0
        if settings.stop_within is not None and not trainer.teacher_loss:
            raise TrainingError(
                "stop_within needs the teacher's loss on the same held-out rows, and there is none here; "
                "leave it out"
            )
        return trainer

    def _prepared(self, model: Any) -> tuple[Any, Any]:
        """Change and freeze the student as it is trained, and make its optimiser."""
        settings = self.settings
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if settings.liger:
            use_liger(model)
        if settings.teacher is not None:
            drop_nothing(model)
        student = choose_trained(model, settings)
        return student, make_optimizer(parameter_groups(student, settings, self._merged_roles()), settings)

    def _objective(self, student: Any, teacher: Any, *, watched: bool) -> Objective:
        """Make the student's losses; ``watched`` where blocks are matched one by one."""
        runner = resampling = None
        if teacher is not None:
            runner = ModelRunner(
                teacher,
                has_head=self.task in VOCABULARY_TASKS,
                watched=watched or self.weights.get("attention", 0) > 0,
            )
            if self.settings.resample:
                resampling = Resampling(runner, self.settings.resample, self.settings.seed)
        return Objective(
            student, self.task, self.weights, runner, self.settings.temperature, resampling=resampling
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

    def _merged_roles(self) -> tuple[str, ...]:
        if not (self.folder / REPORT).is_file():
            return ()
        plan = Plan.from_report(read_report(self.folder))
        return tuple(
            role
            for role in ROLES
            if any(len(group) > 1 for block in plan.blocks for group in block.groups(role))
        )
