"""Images changed at random while a model trains on them.

What happens to an image is drawn by the number of its row alone, so that it is the same however the rows of
a step are divided over passes and processes, and after every interruption.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gqkva_convert.errors import DataError
from gqkva_convert.uptraining.settings import Augment

# Share of an image's side that it is shifted by, at most.
_SHIFT = 0.125
# Operations an image, and their strength of 1: the choice of Cubuk et al. for ImageNet (N = 2, M = 9 of 30).
_OPERATIONS = 2
_STRENGTH = 9 / 30

# Changes images in [0, 1], (rows, channels, height, width), each by its own sign of -1 or 1, (rows,).
Operation = Callable[[Tensor, Tensor], Tensor]


class Augmentation:
    """Shifts and mirrors images; with ``randaugment`` also changes colours and shapes.

    RandAugment: Cubuk et al., 2020, arXiv 1909.13719, section 3; operations and their ranges as torchvision
    has them, computed by kornia.

    Args:
        kind: ``shift`` or ``randaugment``.
        seed: Seed of what is drawn.
        mean: What the model's image processor subtracts from pixels in [0, 1], a number a channel.
        std: What it divides them by.

    Raises:
        DataError: kornia is missing.
    """

    def __init__(self, kind: Augment, seed: int, mean: Sequence[float], std: Sequence[float]) -> None:
        try:
            import kornia
        except ImportError as error:
            raise DataError(
                "augment needs the package kornia; pip install 'gqkva-convert[images]', or leave augment out"
            ) from error
        self.seed = seed
        self.mean, self.std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std))
        self.translate = kornia.geometry.transform.translate
        self.operations = tuple(operations(kornia, len(self.mean)).values()) if kind == "randaugment" else ()

    def __call__(self, pixels: Tensor, numbers: Sequence[int]) -> Tensor:
        """Change images ``(rows, channels, height, width)`` as the image processor made them."""
        draws = [random.Random(f"{self.seed} {number}") for number in numbers]
        size = torch.tensor([pixels.shape[-1], pixels.shape[-2]])
        shifts = torch.tensor([[draw.uniform(-_SHIFT, _SHIFT) for _ in range(2)] for draw in draws]) * size
        mirrored = torch.tensor([draw.random() < 0.5 for draw in draws])
        moved = self.translate(pixels, shifts.to(pixels.dtype), padding_mode="border")
        moved = torch.where(mirrored[:, None, None, None], moved.flip(-1), moved)
        return self._randomly(moved, draws) if self.operations else moved

    def _randomly(self, pixels: Tensor, draws: Sequence[random.Random]) -> Tensor:
        """Apply some of the operations, different ones to each image, one after the other."""
        pixels = (pixels * self.std + self.mean).clamp(0, 1)
        chosen = torch.tensor([draw.sample(range(len(self.operations)), _OPERATIONS) for draw in draws])
        signs = torch.tensor([[draw.choice((-1.0, 1.0)) for _ in range(_OPERATIONS)] for draw in draws])
        for turn in range(_OPERATIONS):
            changed = torch.empty_like(pixels)
            for number in sorted(set(chosen[:, turn].tolist())):
                rows = chosen[:, turn] == number
                changed[rows] = self.operations[number](pixels[rows], signs[rows, turn])
            pixels = changed.clamp(0, 1)
        return (pixels - self.mean) / self.std


def operations(kornia: Any, channels: int) -> dict[str, Operation]:
    """Return the operations that RandAugment chooses from, by name; those on colours only for 3 channels."""
    enhance, transform = kornia.enhance, kornia.geometry.transform
    none = torch.zeros_like

    def moved(pixels: Tensor, shares: Tensor) -> Tensor:
        size = torch.tensor([pixels.shape[-1], pixels.shape[-2]])
        found: Tensor = transform.translate(pixels, shares * size, padding_mode="border")
        return found

    def sheared(pixels: Tensor, amounts: Tensor) -> Tensor:
        found: Tensor = transform.shear(pixels, amounts, padding_mode="border")
        return found

    def spread(pixels: Tensor) -> Tensor:
        least, most = pixels.amin((-2, -1), keepdim=True), pixels.amax((-2, -1), keepdim=True)
        return torch.where(most > least, (pixels - least) / (most - least).clamp(min=1e-6), pixels)

    turn, slant, way = 30 * _STRENGTH, 0.3 * _STRENGTH, (150 / 331) * _STRENGTH
    change, bits, threshold = 0.9 * _STRENGTH, 8 - round(4 * _STRENGTH), 1 - _STRENGTH
    found: dict[str, Operation] = {
        "identity": lambda pixels, signs: pixels,
        "shear-x": lambda pixels, signs: sheared(pixels, torch.stack([slant * signs, none(signs)], 1)),
        "shear-y": lambda pixels, signs: sheared(pixels, torch.stack([none(signs), slant * signs], 1)),
        "translate-x": lambda pixels, signs: moved(pixels, torch.stack([way * signs, none(signs)], 1)),
        "translate-y": lambda pixels, signs: moved(pixels, torch.stack([none(signs), way * signs], 1)),
        "rotate": lambda pixels, signs: transform.rotate(pixels, turn * signs, padding_mode="border"),
        "brightness": lambda pixels, signs: pixels * (1 + change * signs)[:, None, None, None],
        "contrast": lambda pixels, signs: enhance.adjust_contrast_with_mean_subtraction(
            pixels, 1 + change * signs
        ),
        "sharpness": lambda pixels, signs: enhance.sharpness(pixels, 1 + change * signs),
        "posterize": lambda pixels, signs: enhance.posterize(pixels, bits),
        "solarize": lambda pixels, signs: torch.where(pixels >= threshold, 1 - pixels, pixels),
        "equalize": lambda pixels, signs: enhance.equalize(pixels),
        "autocontrast": lambda pixels, signs: spread(pixels),
    }
    if channels == 3:
        saturated = enhance.adjust_saturation_with_gray_subtraction
        found["color"] = lambda pixels, signs: saturated(pixels, 1 + change * signs)
    return found


def mix_pairs(
    pixels: Tensor, labels: Tensor, classes: int, alpha: float, seed: int, numbers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Mix each image with its neighbour, and the labels in the same proportion.

    mixup: Zhang et al., 2018, arXiv 1710.09412, section 2. Rows 2n and 2n + 1 are a pair, so that what is
    mixed does not depend on how a step is divided; its proportion is drawn by the pair's number from
    Beta(alpha, alpha).

    Args:
        pixels: ``(rows, channels, height, width)``, an even number of rows.
        labels: ``(rows,)``, whole numbers.
        classes: Number of labels.
        alpha: Of the distribution; small ones mostly leave one of the two.
        seed: Seed of what is drawn.
        numbers: Numbers of the rows, the first one even.

    Returns:
        Images, and probabilities of the labels ``(rows, classes)``.
    """
    shares = torch.tensor(
        [random.Random(f"{seed} mix {number // 2}").betavariate(alpha, alpha) for number in numbers]
    )
    partners = torch.arange(len(numbers)) ^ 1
    wanted = functional.one_hot(labels, classes).float()
    ours = shares[:, None, None, None]
    mixed = ours * pixels + (1 - ours) * pixels[partners]
    return mixed, shares[:, None] * wanted + (1 - shares[:, None]) * wanted[partners]
