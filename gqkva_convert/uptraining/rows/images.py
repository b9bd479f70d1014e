"""Rows of labelled images as the tensors that a model takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqkva_convert.data.images import pixel_values
from gqkva_convert.data.processors import load_processor
from gqkva_convert.data.records import IMAGE_COLUMNS, LABEL_COLUMNS, find_column, load_records
from gqkva_convert.uptraining.rows.augmentation import Augmentation, mix_pairs
from gqkva_convert.uptraining.rows.batches import Batch
from gqkva_convert.uptraining.rows.row import Row
from gqkva_convert.uptraining.settings import Augment

# Where a row already has the model's own number of its label.
ANSWER = "answer"


class ImageBatches:
    """Makes batches of images with labels.

    Args:
        folder: Checkpoint folder, for its image processor.
        columns: Column of the image and of the label.
        classes: Number of labels.
        augment: How images are changed at random while training; None leaves them.
        mixup: Alpha of the proportions that pairs of images are mixed in while training; 0 mixes none.
        seed: Seed of both.
        number: From a label of the data to the model's.
        workers: Threads that open and scale images; by default half of the CPU's cores, at most 8.

    Raises:
        DataError: `augment` needs kornia, which is missing.
    """

    def __init__(
        self,
        folder: Path,
        columns: tuple[str, str],
        classes: int,
        augment: Augment | None = None,
        mixup: float = 0.0,
        seed: int = 0,
        *,
        number: Callable[[Any], int] = int,
        workers: int | None = None,
    ) -> None:
        self.workers = min(8, (os.cpu_count() or 2) // 2) if workers is None else workers
        self.pool = ThreadPoolExecutor(self.workers) if self.workers > 1 else None
        self.processor = load_processor(folder, "AutoImageProcessor")
        self.image, self.label = columns
        self.number = number
        self.classes = classes
        self.mixup = mixup
        self.seed = seed
        mean = getattr(self.processor, "image_mean", None) or [0, 0, 0]
        std = getattr(self.processor, "image_std", None) or [1] * len(mean)
        if not getattr(self.processor, "do_normalize", True):
            mean, std = [0] * len(mean), [1] * len(mean)
        self.augmentation = None if augment is None else Augmentation(augment, seed, mean, std)

    def batch(self, rows: Sequence[Row], numbers: Sequence[int] = ()) -> Batch:
        """Make pixels and labels, or their probabilities where images are mixed.

        Without numbers nothing is drawn at random.
        """
        if self.pool is None:
            pixels = self._pixels(rows)
        else:
            share = -(-len(rows) // self.workers)
            parts = [rows[start : start + share] for start in range(0, len(rows), share)]
            pixels = torch.cat(list(self.pool.map(self._pixels, parts)))
        labels = torch.tensor(
            [row[ANSWER] if ANSWER in row else self.number(row[self.label]) for row in rows]
        )
        if self.augmentation is not None and len(numbers):
            pixels = self.augmentation(pixels, numbers)
        if self.mixup and len(numbers):
            pixels, labels = mix_pairs(pixels, labels, self.classes, self.mixup, self.seed, numbers)
        return {"pixel_values": pixels, "labels": labels}

    def _pixels(self, rows: Sequence[Row]) -> Tensor:
        return pixel_values(self.processor, rows, self.image)


def image_records(data: str) -> tuple[Any, tuple[str, str]]:
    """Open a data set of labelled images, prepared on disk, and find its columns.

    Raises:
        DataError: It has no images or no labels.
    """
    found = load_records(data, streaming=False)
    first = found[0] if len(found) else {}
    image = find_column(first, IMAGE_COLUMNS, "images")
    return found, (image, find_column(first, LABEL_COLUMNS, "labels"))
