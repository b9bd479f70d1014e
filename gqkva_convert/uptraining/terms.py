"""Terms of the loss that suit a run's settings, task and rows."""

from __future__ import annotations

import math

from gqkva_convert.data.tasks import CAUSAL, EMBEDDING, TO_TARGET
from gqkva_convert.errors import TrainingError
from gqkva_convert.uptraining.objectives.teacher import is_stored
from gqkva_convert.uptraining.rows.batches import StepPlan
from gqkva_convert.uptraining.rows.row import Rows
from gqkva_convert.uptraining.settings import TrainingSettings

# Share of the budget that matches attention blocks, where there is a teacher to match.
_MATCHING_SHARE = 0.5


def loss_weights(settings: TrainingSettings, task: str) -> dict[str, float]:
    """Choose the weights of the terms: the settings', or what suits the task.

    Raises:
        TrainingError: The settings ask for a term that the task does not have.
    """
    if task == TO_TARGET and settings.loss.get("hidden"):
        raise TrainingError("hidden is not for sequence-to-sequence models; use attention or kl")
    if task == EMBEDDING and settings.loss.get("kl"):
        raise TrainingError("kl compares logits, which this model does not have; use hidden")
    if settings.loss or settings.teacher is None:
        return dict(settings.loss) or {"task": 1.0}
    return {"hidden": 1.0} if task == EMBEDDING else {"kl": 1.0}


def matching_share(settings: TrainingSettings, weights: dict[str, float]) -> float:
    """Choose the share of the budget that matches attention blocks to the teacher's.

    Raises:
        TrainingError: The teacher is stored, and its attention blocks or hidden states are asked for.
    """
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


def check_resampled(settings: TrainingSettings, task: str) -> None:
    """Refuse to replace tokens where no teacher can say by what.

    Raises:
        TrainingError: The model is no causal language model, or the teacher is stored.
    """
    if settings.resample and task != CAUSAL:
        raise TrainingError("resample is for causal language models, and this is none; leave it out")
    if settings.resample and is_stored(settings.teacher):
        raise TrainingError("resample needs the teacher, not its stored logits; name the source model")


def check_pairs(settings: TrainingSettings, rows: Rows, weights: dict[str, float], plan: StepPlan) -> None:
    """Refuse rows that an encoder without a head cannot learn from.

    Raises:
        TrainingError: They are texts without a teacher, or pairs without scores that come one by one.
    """
    first = rows.held_out[0]
    if settings.teacher is None and "second_ids" not in first:
        raise TrainingError("an encoder without a head needs pairs of texts, or a teacher")
    is_scored = not math.isnan(first.get("score", 0.0))
    if not is_scored and weights.get("task") and plan.per_device < 2:
        raise TrainingError(
            "pairs without scores are told from the others of a forward pass: give at least 2 rows to one"
        )
