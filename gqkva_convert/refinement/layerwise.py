"""The layer-wise fit: all projections of a block, to the original block's output and attention scores."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gqkva_convert.refinement.attention_calls import observing, score_error
from gqkva_convert.refinement.block_data import BlockData
from gqkva_convert.refinement.block_network import TensorHeads

# Shares of the rate that are tried: a block whose inputs have outliers diverges at the largest.
SHARES = (1.0, 0.3, 0.1)


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast the layer-wise fit runs.

    Attributes:
        steps: Least number of steps of Adam.
        positions: Least number of positions in a step.
        rate: Largest step size that is tried, relative to the root mean square of each projection's weights.
        check_every: Steps between evaluations on held-out inputs.
        seed: Seed of the order of the data.
        scores: Weight of the attention scores' error beside the output's, each relative to its energy; 0
            matches the output alone.
        score_rows: Positions of a sequence whose scores are compared in a step, drawn at each step.
        warmup_steps: Steps in which the rate rises linearly; then it falls to 0 as a cosine.
        trial_steps: Steps of a short fit at each of `SHARES` of the rate, of which the best is taken; 0 for
            the rate itself.
        epochs: Least number of passes over the positions.
    """

    steps: int = 1000
    positions: int = 2048
    rate: float = 0.1
    check_every: int = 50
    seed: int = 0
    scores: float = 0.0
    score_rows: int = 64
    warmup_steps: int = 40
    trial_steps: int = 60
    epochs: float = 20.0

    def steps_over(self, positions: int) -> int:
        """Return the number of steps for data of ``positions`` positions."""
        return max(self.steps, math.ceil(self.epochs * positions / self.positions))

    def rate_at(self, step: int) -> float:
        """Return the share of the rate at a step, counted from 0."""
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        return warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def fit_layer(heads: TensorHeads, learned: BlockData, held: BlockData, settings: FitSettings) -> TensorHeads:
    """Fit all projections to the original block's output (LoLCATs, arXiv 2410.10254, section 3.2).

    Adam; the heads with the least error on held-out inputs are kept, the initial ones included.
    """
    steps = settings.steps_over(sum(map(len, learned.answers)))
    settings = replace(settings, steps=steps, epochs=0.0)
    if settings.trial_steps:
        settings = replace(settings, rate=_best_rate(heads, learned, held, settings), trial_steps=0)
    return _fit(heads, learned, held, settings)


def _best_rate(heads: TensorHeads, learned: BlockData, held: BlockData, settings: FitSettings) -> float:
    """Return the rate whose short fit has the least held-out error; the smallest if all diverge."""
    steps = min(settings.trial_steps, settings.steps)
    errors = {}
    for rate in sorted(settings.rate * share for share in SHARES):
        short = replace(settings, rate=rate, steps=steps, check_every=steps, warmup_steps=steps // 10)
        errors[rate] = held.error(_fit(heads, learned, held, short))
    return min(errors, key=errors.__getitem__)


def _fit(heads: TensorHeads, learned: BlockData, held: BlockData, settings: FitSettings) -> TensorHeads:
    """Fit with Adam at one rate."""
    fitted = {name: head.clone().requires_grad_(True) for name, head in heads.items()}
    groups = []
    for role in ("query", "key", "value", "output"):
        members = [head for (its_role, _), head in fitted.items() if its_role == role]
        root = torch.stack([head.detach().square().mean() for head in members]).mean().sqrt()
        groups.append({"params": members, "lr": settings.rate * float(root.clamp(min=1e-8))})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98), eps=1e-12)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.rate_at)
    scale = max(learned.energy, 1e-30) / max(sum(map(len, learned.answers)), 1)
    best, best_error = heads, held.error(heads)
    draws = learned.draws(settings.positions, settings.seed)
    rows = torch.Generator().manual_seed(settings.seed)
    for step in range(1, settings.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        parts = next(draws)
        count = sum(len(learned.answers[number]) for part in parts for number in part)
        for part in parts:
            loss = _loss(fitted, learned, part, count * scale, count, settings, rows)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % settings.check_every == 0 or step == settings.steps:
            current = {name: head.detach().clone() for name, head in fitted.items()}
            error = held.error(current)
            if error < best_error:
                best, best_error = current, error
    return best


def _loss(
    fitted: TensorHeads,
    data: BlockData,
    numbers: list[int],
    energy: float,
    count: int,
    settings: FitSettings,
    generator: torch.Generator,
) -> Tensor:
    """Return the share of a step's loss of some sequences."""
    network, call, answer = data.network, data.joined(numbers), data.joined_answers(numbers)
    with observing() as ours:
        given = network.attended(fitted, call) @ network.output_weight(fitted)
    loss = (given - answer).square().sum() / energy
    if settings.scores <= 0 or not ours:
        return loss
    with torch.no_grad(), observing() as theirs:
        network.attended(None, call)
    valid: Any = call["valid"]
    for mine, original in zip(ours, theirs, strict=True):
        positions = torch.randperm(mine.query.shape[2], generator=generator)[: settings.score_rows]
        positions = positions.to(mine.query.device)
        kept = None if valid is None else valid.to(positions.device)[:, positions].bool()
        error = score_error(mine.rows(positions), original.rows(positions), kept)
        loss = loss + settings.scores * error * (len(answer) / count)
    return loss
