"""Time numpy's own float32 products of the size that the closed form of a whole model takes.

Inner products of each group's keys and values (`A @ A.T`, of which numpy computes half), of each query head
and output block, and the merged heads as mixes of their members: nothing else, on arrays that are ready.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
from make_checkpoint import Shape
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Array = NDArray[np.float32]


def time_products(shape: Shape, gkv: int, repeats: int = 5) -> dict[str, float]:
    """Time a model's products.

    Args:
        shape: The model.
        gkv: Key/value heads after the conversion.
        repeats: How often one block is timed, after a first time that does not count; the median counts.

    Returns:
        ``seconds`` with the threads that numpy's BLAS takes by itself, and ``cpu_seconds`` with one, which
        other work on the machine hardly changes.
    """
    random = np.random.default_rng(0)
    hidden, head_dim = shape.hidden_size, shape.hidden_size // shape.num_attention_heads
    projections = [random.standard_normal((hidden, hidden), np.float32) for _ in range(4)]
    mix = random.standard_normal((head_dim, hidden // gkv), np.float32)
    square = random.standard_normal((head_dim, head_dim), np.float32)
    found = {}
    for name, clock, threads in (("seconds", time.perf_counter, None), ("cpu_seconds", time.process_time, 1)):
        with threadpool_limits(threads, user_api="blas"):
            times = []
            for _ in range(repeats + 1):
                started = clock()
                _one_block(projections, mix, square)
                times.append(clock() - started)
        found[name] = shape.num_hidden_layers * median(times[1:])
    return found


def _one_block(projections: list[Array], mix: Array, square: Array) -> None:
    """Compute the products of a block: queries, keys, values, each ``(rows, hidden)``, and output columns."""
    query, key, value, output = projections
    head_dim, group = mix.shape
    for rows in (key, value):
        for start in range(0, len(rows), group):
            members = rows[start : start + group]
            members @ members.T
            mix @ members
    for start in range(0, len(query), head_dim):
        head, columns = query[start : start + head_dim], output[:, start : start + head_dim]
        head @ head.T
        columns.T @ columns
        square @ head
        columns @ square
