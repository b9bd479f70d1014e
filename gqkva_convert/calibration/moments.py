"""Second moments of what attention blocks read, gathered in one pass."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.calibration.network import valid_positions, watched
from gqkva_convert.checkpoint.cache import unfinished
from gqkva_convert.errors import WeightError
from gqkva_convert.heads import Place, place_name
from gqkva_convert.progress import Progress

if TYPE_CHECKING:
    from gqkva_convert.calibration.data import Batch

Array = NDArray[np.float64]

# Rows multiplied at once in float64.
_ROWS = 4096


@dataclass
class Moments:
    """Sums over the positions of calibration data, by kind of attention and layer.

    Attributes:
        query: ``sum [x 1] [x 1]'`` over the inputs of queries, ``(inputs + 1, inputs + 1)``.
        key: The same over the inputs of keys and values where they are others (cross-attention).
        batches: Batches counted so far.
    """

    query: dict[Place, Array]
    key: dict[Place, Array]
    batches: int = 0

    def save(self, file: Path) -> None:
        """Write the sums, atomically."""
        from safetensors.numpy import save_file

        tensors = {
            _name(role, (kind, layer)): matrix
            for role, sums in (("query", self.query), ("key", self.key))
            for (kind, layer), matrix in sums.items()
        }
        scratch = file.with_name(unfinished(file.name))
        checksum = _checksum((name, tensors[name]) for name in sorted(tensors))
        save_file(tensors, scratch, {"batches": str(self.batches), "sha256": checksum})
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(file)

    @classmethod
    def load(cls, file: Path) -> Moments:
        """Read what `save` wrote."""
        found = cls({}, {})
        with _open(file) as stored:
            found.batches = int(stored.metadata()["batches"])
            for name in stored.keys():  # noqa: SIM118
                role, kind, layer = name.split(".")
                getattr(found, role)[kind, int(layer)] = stored.get_tensor(name)
        return found


class StoredMoments:
    """Sums in a file, of which a block's are read when they are needed: all of a 7B model's take 4.3 GB.

    Args:
        file: What `Moments.save` wrote.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with _open(file) as stored:
            self.names = frozenset(stored.keys())

    def __contains__(self, place: Place) -> bool:
        return _name("query", place) in self.names

    def is_intact(self) -> bool:
        """Return whether the sums are as they were written; reads all of them."""
        with _open(self.file) as stored:
            found = _checksum((name, stored.get_tensor(name)) for name in sorted(self.names))
            return bool(stored.metadata().get("sha256") == found)

    def size(self, place: Place) -> int:
        """Count the inputs of a block's queries, and the constant behind them; reads no sums."""
        with _open(self.file) as stored:
            return int(stored.get_slice(_name("query", place)).get_shape()[0])

    def mean(self, place: Place) -> tuple[Array, Array]:
        """Return ``E [x 1] [x 1]'`` of a block's inputs of queries, and of keys and values.

        Returns:
            Each ``(inputs + 1, inputs + 1)``.
        """
        with _open(self.file) as stored:
            query: Array = stored.get_tensor(_name("query", place))
            name = _name("key", place)
            key: Array = stored.get_tensor(name) if name in self.names else query
        return query / query[-1, -1], key / key[-1, -1]


def _open(file: Path) -> Any:
    from safetensors import safe_open

    return safe_open(file, "numpy")


def _checksum(tensors: Iterable[tuple[str, Array]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _name(role: str, place: Place) -> str:
    return f"{role}.{place[0]}.{place[1]}"


def check_finite(moments: Moments) -> None:
    """Refuse sums of a model that overflows.

    Raises:
        WeightError: A block reads NaN or infinity.
    """
    for sums in (moments.query, moments.key):
        for place, matrix in sums.items():
            if not np.isfinite(matrix).all():
                raise WeightError(
                    f"{place_name(place)}: the model gives NaN or infinity for the data; "
                    "check the weights, or convert from weights alone"
                )


def collect(
    model: Any,
    batches: Sequence[Batch],
    *,
    start: Moments | None = None,
    after_batch: Callable[[Moments], None] = lambda _: None,
    progress: Progress = lambda _: None,
) -> Moments:
    """Run batches through a model and sum up what its attention blocks read.

    Args:
        model: A transformers model.
        batches: Its inputs.
        start: Sums of the first batches, already gathered; those batches are skipped.
        after_batch: Called after each batch with the sums so far.
        progress: Called with 1 after each batch.
    """
    moments = start or Moments({}, {})

    def gather(place: Place, args: Any, kwargs: Any, batch: Batch) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        _add(moments.query, place, hidden, valid_positions(place[0], batch, "query"))
        if place[0] == "cross":
            states = kwargs.get("key_value_states", kwargs.get("encoder_hidden_states"))
            _add(moments.key, place, states, valid_positions(place[0], batch, "key"))

    with watched(model, gather) as run:
        for batch in batches[moments.batches :]:
            run(batch)
            moments.batches += 1
            after_batch(moments)
            progress(1)
    return moments


def _add(sums: dict[Place, Array], place: Place, hidden: Any, valid: Any) -> None:
    """Add a batch's products, in float64."""
    import torch

    rows = hidden.detach().flatten(0, -2)
    if valid is not None:
        rows = rows[valid.flatten().bool().to(rows.device)]
    size = rows.shape[-1] + 1
    if place not in sums:
        sums[place] = np.zeros((size, size))
    total = torch.from_numpy(sums[place])
    for chunk in rows.split(_ROWS):
        wide = torch.cat([chunk.double(), chunk.new_ones(len(chunk), 1, dtype=torch.float64)], dim=1)
        if wide.device.type == "cpu":
            total.addmm_(wide.T, wide)
        else:
            total += (wide.T @ wide).cpu()


def sum_over_processes(moments: Moments) -> None:
    """Add the sums of all processes of a distributed run, in place."""
    import torch
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    for sums in (moments.query, moments.key):
        for place in sorted(sums):
            total = torch.from_numpy(sums[place]).to(device)
            torch.distributed.all_reduce(total)
            sums[place] = total.cpu().numpy()
