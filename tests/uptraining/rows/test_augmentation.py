"""RandAugment's operations are Pillow's, which the paper used; labels are mixed as pictures are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from gqkva_convert.uptraining.rows.augmentation import Augmentation, mix_pairs, operations

kornia = pytest.importorskip("kornia")
SIDE = 32


def picture() -> Tensor:
    """Smooth colours between 0.1 and 0.8, so that interpolation matters little; (1, 3, side, side)."""
    across, down = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy")
    waves = [(across / 5.0).sin(), (down / 7.0).cos(), ((across + 2 * down) / 9.0).sin()]
    exact = torch.stack(waves)[None] * 0.35 + 0.45
    return (exact * 255).round() / 255


def as_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


def as_pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255


def affine(*inverse: float) -> Callable[[Image.Image], Image.Image]:
    """Takes each output place from ``(a x + b y + c, d x + e y + f)``."""
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )


WAY = 150 / 331 * 0.3 * SIDE
PILLOW: dict[str, Callable[[Image.Image], Image.Image]] = {
    "identity": lambda image: image,
    "translate-x": affine(1, 0, -WAY, 0, 1, 0),
    "translate-y": affine(1, 0, 0, 0, 1, -WAY),
    "shear-x": affine(1, -0.09, 0, 0, 1, 0),
    "shear-y": affine(1, 0, 0, -0.09, 1, 0),
    "rotate": lambda image: image.rotate(9, Image.Resampling.BILINEAR),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.27),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.27),
    "color": lambda image: ImageEnhance.Color(image).enhance(1.27),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.27),
    "posterize": lambda image: ImageOps.posterize(image, 7),
    "solarize": lambda image: ImageOps.solarize(image, 179),
    "equalize": ImageOps.equalize,
    "autocontrast": ImageOps.autocontrast,
}


def test_every_operation_has_its_oracle() -> None:
    assert sorted(operations(kornia, 3)) == sorted(PILLOW)
    assert sorted(set(PILLOW) - set(operations(kornia, 1))) == ["color"]


@pytest.mark.parametrize("name", sorted(PILLOW))
def test_operations_are_pillows(name: str) -> None:
    """Within 3 of 255 shades on average, away from the edges, beyond which Pillow sees black."""
    ours = operations(kornia, 3)[name](picture(), torch.ones(1)).clamp(0, 1)
    theirs = as_pixels(PILLOW[name](as_image(picture())))
    inner = (..., slice(6, -6), slice(6, -6))
    assert float((ours - theirs)[inner].abs().mean()) < 3 / 255
    if name != "identity":
        assert float((ours - picture())[inner].abs().mean()) > 0.1 / 255


def test_every_operation_is_drawn_and_pixels_stay_in_their_range() -> None:
    pixels = (picture().expand(300, -1, -1, -1) - 0.5) / 0.25
    drawn: set[int] = set()
    augmentation = Augmentation("randaugment", 0, [0.5] * 3, [0.25] * 3)

    def noted(number: int) -> Any:
        operation = augmentation.operations[number]

        def apply(rows: Tensor, signs: Tensor) -> Tensor:
            drawn.add(number)
            assert set(signs.tolist()) <= {-1.0, 1.0}
            return operation(rows, signs)

        return apply

    augmentation.operations = tuple(noted(number) for number in range(len(augmentation.operations)))
    changed = augmentation(pixels, range(300)) * 0.25 + 0.5
    assert drawn == set(range(14))
    assert -1e-6 <= float(changed.min()) < 0.05
    assert 0.95 < float(changed.max()) <= 1 + 1e-6


def test_labels_are_mixed_as_pictures_are() -> None:
    """A picture that is its label everywhere tells how much of each label is in it."""
    labels = torch.tensor([3, 1, 2, 2])
    pixels = torch.nn.functional.one_hot(labels, 5).float()[:, :, None, None].expand(-1, -1, 2, 2)
    mixed, wanted = mix_pairs(pixels, labels, 5, 0.8, seed=0, numbers=[8, 9, 10, 11])
    torch.testing.assert_close(mixed[:, :, 0, 0], wanted)
    torch.testing.assert_close(wanted.sum(1), torch.ones(4))
    assert wanted[0, 3] == wanted[1, 1]
    assert 0 < float(wanted[0, 3]) < 1
    torch.testing.assert_close(wanted[2], torch.tensor([0.0, 0, 1, 0, 0]))


def test_proportions_are_of_the_beta_distribution() -> None:
    """Mean 1/2, variance 1 / (4 (2 alpha + 1))."""
    numbers = list(range(8000))
    labels = torch.tensor([0, 1] * 4000)
    _, wanted = mix_pairs(torch.zeros(8000, 1, 1, 1), labels, 2, 0.4, seed=1, numbers=numbers)
    shares = wanted[::2, 0]
    assert abs(float(shares.mean()) - 0.5) < 0.02
    assert abs(float(shares.var()) - 1 / (4 * 1.8)) < 0.01
