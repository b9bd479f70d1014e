"""The next batch, made while the device works on this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from gqkva_convert.uptraining.rows.batches import Batch

# A step and a pass of it.
Place = tuple[int, int]


def prepares_ahead(device: torch.device) -> bool:
    """Return whether the CPU is free while a device computes."""
    return device.type != "cpu"


class BatchesAhead:
    """Gives batches one after the other; each is made in a thread as soon as the one before it is taken.

    Args:
        make: Makes the batch of a place; it is called by one thread at a time.
        after: The place behind a place; None behind the last.
    """

    def __init__(self, make: Callable[[int, int], Batch], after: Callable[[int, int], Place | None]) -> None:
        self.make = make
        self.after = after
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="gqkva-batches")
        self._waiting: tuple[Place, Future[Batch]] | None = None

    def take(self, place: Place) -> Batch:
        """Return the batch of a place; raises what making it raised."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting[0] != place:
            waiting[1].exception()  # a run that went back: nothing else may be made meanwhile
            waiting = None
        batch = self.make(*place) if waiting is None else waiting[1].result()
        following = self.after(*place)
        if following is not None:
            self._waiting = following, self._pool.submit(self.make, *following)
        return batch
