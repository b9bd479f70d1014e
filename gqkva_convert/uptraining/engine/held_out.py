"""The loss on rows that are not trained on."""

from __future__ import annotations

from typing import Any

import torch

from gqkva_convert.uptraining.engine.feed import Feed
from gqkva_convert.uptraining.engine.processes import summed
from gqkva_convert.uptraining.objectives.objective import Objective
from gqkva_convert.uptraining.rows.batches import Counts, count


@torch.no_grad()
def held_out_loss(accelerator: Any, objective: Any, plain: Objective, feed: Feed) -> float:
    """Measure the mean loss over held-out rows, each process a part of them.

    Args:
        accelerator: Accelerate's.
        objective: What is measured, as Accelerate wrapped it or not.
        plain: The same, not wrapped.
        feed: Has the rows and makes batches of them, in which nothing is drawn at random.
    """
    objective.eval()
    rows, plan = feed.rows.held_out, feed.plan
    total = torch.zeros(2, dtype=torch.float64)
    # All processes run equally many passes, or sharded weights would wait for each other.
    for start in range(0, len(rows), plan.per_device * plan.processes):
        mine = start + accelerator.process_index * plan.per_device
        some = rows[mine : mine + plan.per_device]
        batch = feed.collator.batch(some or rows[:1], [])
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        objective(batch, Counts(1, 1), "held_out")
        if some:
            found = count(batch)
            items = found.items if "task" in plain.last else found.positions
            total += torch.tensor([float(plain.last["loss"]), items], dtype=torch.float64)
    loss, measured = summed(accelerator, list(total))
    return loss / max(measured, 1.0)
