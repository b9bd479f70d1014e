"""The calls of attention blocks, spilled to disk so that each block can be run again on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert.calibration.network import valid_positions, watched
from gqkva_convert.heads import Place

if TYPE_CHECKING:
    from gqkva_convert.calibration.data import Batch


class Calls:
    """Calls of attention blocks, a file for each batch.

    Attributes:
        folder: Folder of the files.
        files: One for each batch, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []

    def of(self, place: Place, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Return a block's calls in some batches: ``args``, ``kwargs``, and ``valid`` positions or None."""
        import torch

        for number in numbers:
            stored = torch.load(self.files[number], mmap=True, weights_only=True)
            yield stored["/".join(map(str, place))]


def by_length(batches: Sequence[Batch]) -> list[Batch]:
    """Batch texts of like length together, without needless padding; return other inputs as they are.

    A block is then run on texts side by side with few positions wasted.

    Args:
        batches: Inputs; each result is no larger than the largest of them.
    """
    import torch

    names = {"input_ids", "attention_mask", "token_type_ids"}
    if not all(
        "attention_mask" in batch and set(batch) <= names and set(batch) == set(batches[0])
        for batch in batches
    ):
        return list(batches)
    most = max(batch["input_ids"].numel() for batch in batches)
    rows = [
        {name: tensor[row] for name, tensor in batch.items()}
        for batch in batches
        for row in range(len(batch["input_ids"]))
    ]
    # Up to the last token that counts, wherever the padding is.
    lengths = [1 + max((int(place) for place in row["attention_mask"].nonzero()), default=0) for row in rows]
    order = sorted(range(len(rows)), key=lambda number: lengths[number])
    sorted_batches: list[Batch] = []
    while order:
        count = 1
        while count < len(order) and (count + 1) * lengths[order[count]] <= most:
            count += 1
        some, order = order[:count], order[count:]
        width = lengths[some[-1]]
        sorted_batches.append(
            {
                name: torch.stack([_widened(rows[number][name], width) for number in some])
                for name in batches[0]
            }
        )
    return sorted_batches


def _widened(row: Any, width: int) -> Any:
    import torch

    return torch.nn.functional.pad(row[:width], (0, max(0, width - len(row))))


def record(
    model: Any,
    batches: Sequence[Batch],
    folder: Path,
    *,
    places: set[Place],
    progress: Callable[[int], None] = lambda _: None,
) -> Calls:
    """Run batches through a model and record the calls of its attention blocks.

    Args:
        model: A transformers model.
        batches: Its inputs.
        folder: Where to write; a batch takes the size of every block's inputs.
        places: Blocks wanted, by kind and layer.
        progress: Called with 1 after each batch.
    """
    import torch

    calls, taken = Calls(folder), {}

    def take(place: Place, args: Any, kwargs: Any, batch: Batch) -> None:
        taken["/".join(map(str, place))] = {
            "args": [_kept(value) for value in args],
            "kwargs": {name: _kept(value) for name, value in kwargs.items() if _is_data(value)},
            "valid": valid_positions(place[0], batch, "query"),
        }

    with watched(model, take, places) as run:
        for number, batch in enumerate(batches):
            taken.clear()
            run(batch)
            file = folder / f"calls-{number:05d}.pt"
            torch.save(taken, file)
            calls.files.append(file)
            progress(1)
    return calls


def _is_data(value: Any) -> bool:
    import torch

    if isinstance(value, (tuple, list)):
        return all(_is_data(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str, torch.Tensor))


def _kept(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, (tuple, list)):
        return tuple(_kept(part) for part in value)
    return value if _is_data(value) else None
