"""Images of records as the pixels that a model reads."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gqkva_convert.data.shapes import Record
from gqkva_convert.errors import DataError, first_line
from gqkva_convert.modeling.families import find_family

if TYPE_CHECKING:
    from torch import Tensor


def read_image(record: Record, column: str) -> Any:
    """Open a record's image.

    Raises:
        DataError: It is damaged, or no image.
    """
    from PIL import Image

    image = record[column]
    if isinstance(image, dict):  # as `datasets` stores what it has not opened
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    if not isinstance(image, (str, bytes)):
        return image
    try:
        opened = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        opened.load()  # and close its file
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        where = image if isinstance(image, str) else f"an image under {column!r}"
        raise DataError(f"{where} cannot be read: {first_line(error)}; mend or remove it") from error
    return opened


def pixel_values(processor: Any, records: Iterable[Record], column: str) -> Tensor:
    """Make pixels of images by a model's image processor, in one channel where the model has one.

    Returns:
        ``(images, channels, height, width)``.

    Raises:
        DataError: An image is damaged.
    """
    mode = "L" if len(getattr(processor, "image_mean", None) or (0, 0, 0)) == 1 else "RGB"
    images = [read_image(record, column).convert(mode) for record in records]
    pixels: Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
    return pixels


def checked_pixels(processor: Any, records: Iterable[Record], column: str, config: Any, data: str) -> Tensor:
    """Make pixels as `pixel_values` does; refuse another size than the model's, which some processors keep.

    Raises:
        DataError: The model reads images of another size, or one is damaged.
    """
    pixels = pixel_values(processor, records, column)
    if find_family(config.model_type, type(config).__name__).any_image_size:
        return pixels
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    wanted = (size, size) if isinstance(size, int) else size
    found = tuple(pixels.shape[-2:])
    if wanted is not None and found != tuple(wanted):
        raise DataError(
            f"{data}: images of {found[0]} x {found[1]} come out of the model's image processor, the model "
            f"reads {wanted[0]} x {wanted[1]}; give images of that size"
        )
    return pixels
