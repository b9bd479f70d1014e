"""The weighted sum of losses that a student is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gqkva_convert.calibration.network import valid_positions
from gqkva_convert.data.tasks import CAUSAL, EMBEDDING, MASKED, TO_TARGET
from gqkva_convert.heads import Place
from gqkva_convert.modeling.loading import main_output
from gqkva_convert.uptraining.objectives.losses import (
    chunked_losses,
    relative_errors,
    task_loss,
    teacher_divergence,
    top_divergence,
)
from gqkva_convert.uptraining.objectives.resampling import NUMBERS, Resampling
from gqkva_convert.uptraining.objectives.runner import ForwardPass, ModelRunner
from gqkva_convert.uptraining.rows.batches import IGNORED, PRESENT, Batch, Counts, present_positions

VOCABULARY_TASKS = (CAUSAL, MASKED, TO_TARGET)


class Objective(nn.Module):
    """A student with its losses, as one module, so that every way to distribute it sees one forward pass.

    Args:
        student: The model that is trained.
        task: Name of its task.
        weights: What each term counts.
        teacher: Runs the teacher, if there is one at hand; the student's blocks are watched where its are.
        temperature: Of ``kl``.
        resampling: Replaces tokens of what is trained on.
    """

    def __init__(
        self,
        student: Any,
        task: str,
        weights: dict[str, float],
        teacher: ModelRunner | None = None,
        temperature: float = 1.0,
        *,
        resampling: Resampling | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.task = task
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.temperature = temperature
        # Encoders without a head are compared by how far they are from the teacher, if there is one.
        by_teacher = task == EMBEDDING and teacher is not None
        self.held_out_weights = {"hidden" if by_teacher else "task": 1.0}
        watched = teacher is not None and teacher.watched
        self.runner = ModelRunner(student, has_head=task in VOCABULARY_TASKS, watched=watched)
        self.energies: dict[Place, float] = {}
        self.is_sharded = False
        # What FSDP shards one by one; without these names it would shard the whole as one piece.
        stock = student.get_base_model() if hasattr(student, "peft_config") else student
        present = {type(module).__name__ for module in student.modules()}
        self._no_split_modules = [
            name for name in getattr(stock, "_no_split_modules", None) or () if name in present
        ]
        # Sums of the last forward pass, in float32: what wraps this module may round what it returns.
        self.last: dict[str, Tensor] = {}
        # In a tuple, so that the teacher is no part of what is trained, saved or distributed.
        self._teacher = (teacher,)
        self.resampling = resampling

    def forward(self, batch: Batch, counts: Counts, mode: str = "train") -> Tensor:
        """Compute the batch's share of the loss of a step; `last` then holds it and each term.

        Args:
            batch: Inputs and labels; ``top_values`` and ``top_indices`` where the teacher was run before;
                ``numbers`` of the rows where their tokens are resampled.
            counts: Of the whole step, all processes together.
            mode: ``train``; ``matching``, where attention blocks are matched to the teacher's, each for
                itself; ``held_out``, where only the loss that models are compared by is computed.

        Returns:
            The weighted sum, which sums to the step's over its batches.
        """
        if self.resampling is not None and NUMBERS in batch:
            batch = self.resampling(batch)
        total, terms = self._computed(batch, counts, mode)
        self.last = {"loss": total.detach().float(), **{name: term.float() for name, term in terms.items()}}
        return total

    def _computed(self, batch: Batch, counts: Counts, mode: str) -> tuple[Tensor, dict[str, Tensor]]:
        if mode == "matching":
            return self._matching(batch, counts)
        weights = self.held_out_weights if mode == "held_out" else self.weights
        stored: Batch = {name: batch[name] for name in ("top_values", "top_indices") if name in batch}
        batch = {name: value for name, value in batch.items() if name not in stored}
        hidden, attention = "hidden" in weights, "attention" in weights
        ours = self.runner.run(batch, hidden=hidden, attention=attention)
        theirs = None
        if self._teacher[0] is not None and set(weights) - {"task"}:
            with torch.no_grad():
                theirs = self._teacher[0].run(batch, hidden=hidden, attention=attention)
        total, terms = self._on_outputs(batch, ours, theirs, stored, weights, counts)
        if theirs is not None:
            states: dict[str, Tensor] = {}
            if "hidden" in weights:
                wanted_states = [state.to(batch["labels"].device) for state in hidden_states(theirs.output)]
                found_states = hidden_states(ours.output)
                errors = relative_errors(found_states, wanted_states, present_positions(batch))
                states["hidden"] = errors / _patches(batch, wanted_states[0])
            if "attention" in weights:
                states["attention"] = self._block_errors(ours.attention, theirs.attention, batch)
            for name, value in states.items():
                terms[name] = value.detach() / counts.positions
                total = total + weights[name] * value / counts.positions
        return total, terms

    def _on_outputs(
        self,
        batch: Batch,
        ours: ForwardPass,
        theirs: ForwardPass | None,
        stored: Batch,
        weights: dict[str, float],
        counts: Counts,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Compute the losses that look at what the model answers."""
        labels = batch["labels"]
        weights = {name: weight for name, weight in weights.items() if name in ("task", "kl")}
        if not weights:
            return 0.0, {}
        if self.task in VOCABULARY_TASKS:
            summed, sums = self._over_vocabulary(labels, ours, theirs, stored, weights)
            return summed / counts.items, {name: value / counts.items for name, value in sums.items()}
        found: dict[str, Tensor] = {}
        if self.task == EMBEDDING:
            found["task"] = pair_loss(pooled(ours.output, batch), labels)
        else:
            logits = ours.output.logits.float()
            if "task" in weights:
                found["task"] = task_loss(logits, labels)
            if "kl" in weights and theirs is not None:
                wanted = theirs.output.logits.float().to(logits.device)
                found["kl"] = teacher_divergence(logits, wanted, self.temperature)
        total: Any = sum(weights[name] * value for name, value in found.items())
        return total / counts.items, {name: value.detach() / counts.items for name, value in found.items()}

    def _over_vocabulary(
        self,
        labels: Tensor,
        ours: ForwardPass,
        theirs: ForwardPass | None,
        stored: Batch,
        weights: dict[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute task loss and divergence over chunks of the labelled positions."""
        assert ours.head_input is not None
        labels = labels.to(ours.head_input.device)
        valid = labels != IGNORED
        targets = labels[valid]
        wanted = self._teacher_logits(valid, theirs) if "kl" in weights else None
        top = {name: value[valid] for name, value in stored.items()}
        if top:
            top["top_values"] = top["top_values"].view(torch.float32)  # passed on as bits: see `teacher`

        def losses(logits: Tensor, span: slice) -> dict[str, Tensor]:
            found = {}
            if "task" in weights:
                found["task"] = task_loss(logits, targets[span])
            if "kl" in weights and top:
                values, indices = top["top_values"][span], top["top_indices"][span]
                found["kl"] = top_divergence(logits, values, indices.long(), self.temperature)
            elif "kl" in weights:
                assert wanted is not None
                found["kl"] = teacher_divergence(logits, wanted(span), self.temperature)
            return found

        return chunked_losses(ours.head_input[valid], self.runner.head(), losses, weights)

    def _teacher_logits(self, valid: Tensor, theirs: ForwardPass | None) -> Callable[[slice], Tensor] | None:
        if theirs is None:
            return None
        teacher = self._teacher[0]
        assert teacher is not None
        assert theirs.head_input is not None
        head = teacher.head()
        rows = theirs.head_input[valid.to(theirs.head_input.device)]

        def logits(span: slice) -> Tensor:
            with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
                return head.logits(rows[span].to(head.weight.dtype)).to(valid.device)

        return logits

    def _matching(self, batch: Batch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute each attention block's error on the teacher's own inputs.

        A block hands on what the teacher's gave, so that the next one reads what the teacher's reads
        (attention transfer: Zhang et al., 2024, LoLCATs, arXiv 2410.10254, section 3.2).
        """
        teacher = self._teacher[0]
        assert teacher is not None
        with torch.no_grad():
            theirs = teacher.run(batch, attention=True).attention
        device = batch["labels"].device
        wanted = {place: value.to(device) for place, value in theirs.items()}
        ours = self.runner.run(batch, forced=wanted)
        total = self._block_errors(ours.attention, wanted, batch) / counts.positions
        if self.is_sharded:
            # FSDP gathers a layer's weights when a gradient reaches its output, which none does by itself.
            end = main_output(ours.output) if ours.head_input is None else ours.head_input
            total = total + 0.0 * end.sum()
        return total, {"matching": total.detach()}

    @torch.no_grad()
    def measure_energies(self, batches: Iterable[Batch]) -> None:
        """Measure the mean energy of each attention block's output, by which its errors are divided."""
        teacher = self._teacher[0]
        assert teacher is not None
        sums: dict[Place, float] = {}
        counts: dict[Place, int] = {}
        for batch in batches:
            for place, value in teacher.run(batch, attention=True).attention.items():
                rows = value.float()[_attended(place, batch, value).to(value.device)]
                sums[place] = sums.get(place, 0.0) + float(rows.square().sum())
                counts[place] = counts.get(place, 0) + len(rows)
        self.energies = {place: max(total / counts[place], 1e-12) for place, total in sums.items()}

    def _block_errors(self, ours: dict[Place, Tensor], theirs: dict[Place, Tensor], batch: Batch) -> Tensor:
        """Average over blocks the squared error relative to the block's energy, summed over positions."""
        errors = torch.zeros((), device=batch["labels"].device)
        for place, wanted in theirs.items():
            rows = _attended(place, batch, wanted)
            missing = ours[place].float() - wanted.to(ours[place].device).float()
            error = (missing.square().sum(-1) * rows).sum() / self.energies[place]
            errors = errors + error / _patches(batch, wanted)
        return errors / len(theirs)


def hidden_states(output: Any) -> list[Tensor]:
    """Return hidden states ``(batch, positions, hidden)`` of every layer, encoder before decoder."""
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    return [state for name in names for state in getattr(output, name, None) or ()]


def pooled(output: Any, batch: Batch) -> Tensor:
    """Average the last hidden states over a text's tokens, scaled to length 1: ``(texts, hidden)``."""
    mask = batch["attention_mask"][..., None].to(output.last_hidden_state.dtype)
    mean = (output.last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1)
    found: Tensor = functional.normalize(mean.float(), dim=-1)
    return found


def pair_loss(embeddings: Tensor, scores: Tensor) -> Tensor:
    """Sum the loss of pairs of texts over pairs; all first texts come before the second ones.

    Where pairs are scored, squared error of the cosine and the score; where they are
    not, each text finds its partner among the batch's (Henderson et al., 2017, arXiv 1705.00652).

    Args:
        embeddings: ``(2 * pairs, hidden)``, of length 1.
        scores: ``(pairs,)``; NaN where there are none.
    """
    count = len(scores)
    first, second = embeddings[:count], embeddings[count:]
    if len(second) != count:
        return embeddings.sum() * 0.0  # texts without partners have no task
    if not bool(scores.isnan().any()):
        return ((first * second).sum(-1) - scores).square().sum()
    partners = torch.arange(count, device=scores.device)
    return functional.cross_entropy(20.0 * first @ second.T, partners, reduction="sum")


def _attended(place: Place, batch: Batch, output: Tensor) -> Tensor:
    """Return the mask of the positions of a block's output that are no padding, ``(batch, positions)``."""
    mask = batch.get(PRESENT, valid_positions(place[0], batch, "query"))
    if mask is None or mask.shape != output.shape[:2]:
        return torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)
    found: Tensor = mask.bool().to(output.device)
    return found


def _patches(batch: Batch, states: Tensor) -> int:
    """Count the positions of one counted item: an image's patches, or a token's single one."""
    return 1 if "input_ids" in batch else int(states.shape[1])
