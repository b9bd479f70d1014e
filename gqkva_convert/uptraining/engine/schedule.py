"""Learning rates of a run's steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Share of the steps over which a warm-up-stable-decay schedule falls (Hu et al., 2024, arXiv 2404.06395).
_DECAY = 0.2
# What cosine and linear schedules fall to.
_FLOOR = 0.02


# By hand: transformers' schedules have one stage, and most fall to 0.
@dataclass(frozen=True)
class Schedule:
    """Rates of a run: matching first, falling in a line; then the chosen shape.

    Attributes:
        steps: Steps of the whole run.
        matching_steps: How many of them match attention blocks.
        kind: ``cosine``, ``linear``, ``wsd`` or ``constant``.
        warmup_steps: Steps over which the rate rises after matching.
        rate: Highest rate.
        matching_rate: Highest rate while matching.
    """

    steps: int
    matching_steps: int
    kind: str
    warmup_steps: int
    rate: float
    matching_rate: float

    def at(self, step: int) -> float:
        """Return the learning rate of a step; steps count from 0."""
        if step < self.matching_steps:
            return self.matching_rate * (1 - step / self.matching_steps)
        step, steps = step - self.matching_steps, self.steps - self.matching_steps
        if step < self.warmup_steps:
            return self.rate * (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.rate * self._shape(done)

    def _shape(self, done: float) -> float:
        if self.kind == "constant":
            return 1.0
        if self.kind == "linear":
            return 1.0 - (1.0 - _FLOOR) * done
        if self.kind == "wsd":
            return 1.0 if done < 1 - _DECAY else max(_FLOOR, (1 - done) / _DECAY)
        return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * done))
