"""The safetensors header: names, dtypes, shapes and byte ranges, read and written without the weights."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.damage import refuse_stand_in
from gqkva_convert.checkpoint.dtypes import BITS, tensor_bytes
from gqkva_convert.checkpoint.jsonfile import parse_json
from gqkva_convert.errors import CheckpointError

# The official reader's own limit.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: Name as stored.
        dtype: safetensors name, such as ``BF16``.
        shape: Axes in stored order.
        file: File that holds it.
        offset: First byte within the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.dtype, self.shape)


@dataclass(frozen=True)
class Header:
    """A parsed header: its tensors in file order and the file's free-text metadata."""

    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check a file's header; nothing of the data is read.

    Raises:
        CheckpointError: The file is shorter than its header says, or the header is not one, or its ranges
            overlap, leave holes, or do not fit their shapes. Says what the file is instead where that shows.
    """
    try:
        return _read_header(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except CheckpointError:
        refuse_stand_in(path)
        raise


def _read_header(path: Path) -> Header:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(f"{path}: {size} bytes are too few for a safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{path}: header of {length} bytes announced in a file of {size}; "
                "the file is truncated or not safetensors, download it again"
            )
        raw = file.read(length)
    return parse_header(raw, path, data_start=8 + length, data_bytes=size - 8 - length)


# By hand: safetensors.safe_open gives no offsets, and its errors name neither tensor nor fault.
def parse_header(raw: bytes, path: Path, data_start: int, data_bytes: int) -> Header:
    """Check the JSON part of a header against the ``data_bytes`` that follow it."""
    entries = parse_json(raw, f"the header of {path}")
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: header is not a JSON object")
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: header metadata is not a map of texts")
    ranges = []
    for name, entry in entries.items():
        try:
            dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            name.encode()
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: header entry of {name!r} is malformed") from error
        if not isinstance(shape, list):
            raise CheckpointError(f"{path}: header entry of {name!r} is malformed")
        shape = tuple(shape)
        # The product of the sizes, empty axes aside, must fit the official reader's integers too.
        if not all(_is_size(number) for number in (*shape, start, end)) or not _is_size(
            math.prod(size for size in shape if size)
        ):
            raise CheckpointError(
                f"{path}: header entry of {name!r} has a size that is not a whole number of 63 bits"
            )
        if not isinstance(dtype, str) or dtype not in BITS:
            raise CheckpointError(f"{path}: {name!r} has the unknown dtype {dtype!r}")
        if math.prod(shape) * BITS[dtype] % 8:
            raise CheckpointError(f"{path}: {name!r} of dtype {dtype} ends inside a byte")
        if end - start != tensor_bytes(dtype, shape):
            raise CheckpointError(
                f"{path}: {name!r} of dtype {dtype} and shape {list(shape)} needs "
                f"{tensor_bytes(dtype, shape)} bytes, the header gives it {end - start}"
            )
        ranges.append((start, end, name, StoredTensor(name, dtype, shape, path, data_start + start)))
    ranges.sort(key=lambda item: item[:2])
    position = 0
    for start, end, name, _ in ranges:
        if start != position:
            fault = "overlaps the tensor before it" if start < position else "leaves a hole before it"
            raise CheckpointError(
                f"{path}: {name!r} starts at byte {start} and {fault} (expected {position})"
            )
        position = end
    if position != data_bytes:
        raise CheckpointError(
            f"{path}: the header describes {position} bytes of data, the file has {data_bytes}; "
            "it is truncated or damaged, download it again"
        )
    return Header(tuple(tensor for *_, tensor in ranges), metadata)


def _is_size(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Lay tensors out one after the other.

    Args:
        tensors: ``(name, dtype, shape)`` in file order.
        metadata: Free text for the file.

    Returns:
        The bytes that open the file, padded to a multiple of 8, and each tensor's offset in the file.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    starts: dict[str, int] = {}
    position = 0
    for name, dtype, shape in tensors:
        size = tensor_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        starts[name] = position
        position += size
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    opening = struct.pack("<Q", len(raw)) + raw
    return opening, {name: len(opening) + start for name, start in starts.items()}
