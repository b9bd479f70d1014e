"""Blocks whose projections merge together, computed when the first of their tensors is written."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.heads import Place
from gqkva_convert.source.stored_block import gain_moments, read_heads
from gqkva_convert.steps.step import BlockMerge
from gqkva_convert.transforms.blocks import Heads, InputMoments, merge_heads

# Measured moments of a block, or None where only weights are known.
Measured = Callable[[Place], InputMoments | None]
# Heads of a block that are made already.
Fitted = Callable[[Place], Heads | None]


class MergedBlocks:
    """Merged blocks, kept while their tensors are being written; safe to use from several threads.

    Args:
        reader: Reader of the source.
        measured: Moments measured on data; by default weights alone count.
        fitted: Heads of a block that are made already; None where they are not.
        kept: How many blocks to keep; the four tensors of a block are near each other in a checkpoint.
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
        self.done: OrderedDict[Place, Heads] = OrderedDict()
        self.lock = threading.Lock()

    def heads(self, merge: BlockMerge) -> Heads:
        """Return the merged heads of a block."""
        place = merge.block.place
        with self.lock:
            if place not in self.done:
                while len(self.done) >= self.kept:
                    self.done.popitem(last=False)
                found = self.fitted(place)
                if found is None:
                    found = merge_block(merge, self.reader, self.measured(place))
                self.done[place] = found
            self.done.move_to_end(place)
            return self.done[place]


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
    heads, gains = read_heads(merge.block, reader), gain_moments(merge.block, reader)
    return merge_heads(merge.head_merge(), heads, gains, measured)
