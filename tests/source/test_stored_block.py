"""Blocks as the source stores them, for every family and packing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.source.model import open_model
from gqkva_convert.source.stored_block import read_heads, stored_block

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_of_a_projection_belongs_to_one_head(family: str, tiny: Tiny) -> None:
    """A row read twice, or never, would merge the wrong numbers; the heads sum up to the tensors."""
    model = open_model(tiny(family))
    with model.checkpoint.reader() as reader:
        for block in model.blocks:
            stored = stored_block(model, block)
            heads = read_heads(stored, reader)
            for projection in stored.projections:
                starts = sorted(start for role in projection.roles for start in projection.starts[role])
                size = projection.weight.shape[projection.head_axis]
                assert starts == list(range(0, size, stored.layout.head_dim))
                weight = reader.read(projection.weight).view(np.float32)
                read = sum(float(heads[role][:, :, : _inputs(projection)].sum()) for role in projection.roles)
                assert read == pytest.approx(float(weight.astype(np.float64).sum()), abs=1e-6)


def _inputs(projection: object) -> int:
    weight, axis = projection.weight, projection.head_axis  # type: ignore[attr-defined]
    return int(weight.shape[1 - axis])
