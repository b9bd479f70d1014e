"""Blocks whose projections merge together, computed when the first of their tensors is written."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.heads import Place
from gqkva_convert.source.stored_block import gain_moments, stored_heads
from gqkva_convert.steps.step import BlockMerge
from gqkva_convert.transforms.blocks import Heads, InputMoments, merge_heads

# Measured moments of a block, or None where only weights are known.
Measured = Callable[[Place], InputMoments | None]
# Heads of a block that are made already.
Fitted = Callable[[Place], Heads | None]


class MergedBlocks:
    """Merged blocks, kept while their tensors are being written; use as a context manager.

    Safe to use from several threads. Each keeps the blocks that it merged; a block whose tensors are written
    by one thread is merged once. Until the context is left, BLAS uses one thread for each that calls it, so
    that blocks merge side by side and a merge gives the same bits whatever the number of threads.

    Args:
        reader: Reader of the source.
        measured: Moments measured on data; by default weights alone count.
        fitted: Heads of a block that are made already; None where they are not.
        kept: How many blocks a thread keeps; the tensors of a block are near each other in a checkpoint.
    """

    def __init__(
        self,
        reader: TensorReader,
        measured: Measured = lambda place: None,
        fitted: Fitted = lambda place: None,
        kept: int = 2,
    ) -> None:
        self.reader = reader
        self.measured = measured
        self.fitted = fitted
        self.kept = kept
        self._thread = threading.local()

    def __enter__(self) -> MergedBlocks:
        from threadpoolctl import threadpool_limits

        # Here rather than in the threads that merge: limits nest only within one thread.
        self._limits = threadpool_limits(1, user_api="blas")
        return self

    def __exit__(self, *error: object) -> None:
        self._limits.restore_original_limits()

    def heads(self, merge: BlockMerge) -> Heads:
        """Return the merged heads of a block.

        Raises:
            WeightError: Its weights hold NaN or infinity.
            FamilyError: Its rotary positions are of a kind that is not known.
        """
        done: OrderedDict[Place, Heads] = self._thread.__dict__.setdefault("done", OrderedDict())
        place = merge.block.place
        if place not in done:
            while len(done) >= self.kept:
                done.popitem(last=False)
            found = self.fitted(place)
            done[place] = merge_block(merge, self.reader, self.measured(place)) if found is None else found
        done.move_to_end(place)
        return done[place]


def merge_block(merge: BlockMerge, reader: TensorReader, measured: InputMoments | None = None) -> Heads:
    """Read a block's heads and merge them by its rules (`merge_heads`).

    Args:
        merge: The block, its plan and its rules.
        reader: Reader of the source.
        measured: Second moments of its inputs; None to estimate them from weights (`gain_moments`).

    Raises:
        WeightError: Its weights hold NaN or infinity.
        FamilyError: Its rotary positions are of a kind that is not known.
    """
    heads, gains = stored_heads(merge.block, reader), gain_moments(merge.block, reader)
    return merge_heads(merge.head_merge(), heads, gains, measured)
