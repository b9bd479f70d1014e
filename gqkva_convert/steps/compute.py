"""The bytes of one step, computed in bounded pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gqkva_convert.checkpoint.dtypes import BITS
from gqkva_convert.checkpoint.header import StoredTensor
from gqkva_convert.checkpoint.reader import Bytes, TensorReader
from gqkva_convert.errors import WeightError
from gqkva_convert.steps.merged_blocks import MergedBlocks
from gqkva_convert.steps.step import OutputHead, Piece, Step
from gqkva_convert.transforms.blocks import Heads
from gqkva_convert.transforms.merge import RULES, fresh_head, merge
from gqkva_convert.transforms.precision import STORED, Array, decode, encode, is_finite

# Source bytes of a head handled at once; with its partners and their wider copies it fits a core's cache.
PIECE_BYTES = 256 << 10


def step_bytes(
    step: Step, rule: str, seed: int, reader: TensorReader, merged: MergedBlocks
) -> Iterator[tuple[int, Bytes]]:
    """Compute a step's output as ``(first byte, bytes)``, in order and without gaps.

    Args:
        step: A step that is not a plain copy.
        rule: Name of the merge rule.
        seed: Seed of the ``random`` rule.
        reader: Reader of the source.
        merged: Blocks that a joint rule merges.

    Raises:
        WeightError: A weight is NaN or infinity, or does not fit the new dtype.
    """
    if not step.heads:
        yield from _cast(step, reader)
    elif step.merge is not None:
        yield from _block_bytes(step, merged.heads(step.merge))
    elif step.axis == 0:
        yield from _heads_along_rows(step, rule, seed, reader)
    else:
        yield from _heads_along_columns(step, rule, seed, reader)


def _block_bytes(step: Step, merged: Heads) -> Iterator[tuple[int, Bytes]]:
    """Yield the bytes of a tensor of a block that was merged as a whole, some heads or rows at a time."""
    inputs = step.shape[1 - step.axis] if step.content == "weight" else 0  # without the bias
    columns: list[Array] = []
    position = 0
    for head in step.heads:
        values = merged[head.role, head.stored]
        values = values[:, -1] if step.content == "bias" else values[:, :inputs]
        output = encode(values if step.axis == 0 else values.T, step.dtype)
        if not is_finite(output, step.dtype):
            raise WeightError(f"{step.name!r} does not fit {step.dtype}: a value overflows; use bfloat16")
        if step.axis == 1:
            columns.append(output)
            continue
        yield position, output.reshape(-1).view(np.uint8)
        position += output.nbytes
    rows = max(1, PIECE_BYTES * step.shape[0] // step.nbytes)
    for first in range(0, step.shape[0] if columns else 0, rows):
        piece = np.concatenate([column[first : first + rows] for column in columns], axis=1)
        yield position, piece.reshape(-1).view(np.uint8)
        position += piece.nbytes


def _cast(step: Step, reader: TensorReader) -> Iterator[tuple[int, Bytes]]:
    source = step.source
    width = BITS[source.dtype] // 8
    for start in range(0, source.nbytes, PIECE_BYTES):
        stored = _stored(reader.read(source, start, min(PIECE_BYTES, source.nbytes - start)), source.dtype)
        output = encode(decode(stored, source.dtype), step.dtype)
        _check_finite(output, step, (source,), stored)
        yield start // width * (BITS[step.dtype] // 8), output.view(np.uint8)


def _heads_along_rows(step: Step, rule: str, seed: int, reader: TensorReader) -> Iterator[tuple[int, Bytes]]:
    """Compute heads that are runs of rows (or of a vector's entries): each piece is one run of bytes."""
    source = step.source
    rows = PIECE_BYTES * source.shape[0] // max(1, source.nbytes)
    if RULES[rule].reads_weights or RULES[rule].starts_afresh:
        rows = step.size  # such a rule must see the whole head
    position = 0
    for place, head in enumerate(step.heads):
        for first in range(0, step.size, max(1, rows)):
            count = min(max(1, rows), step.size - first)
            stored = [_row_piece(piece, first, count, reader) for piece in head.pieces]
            if stored:
                output = _one_head(step, head, stored, rule, f"{seed}/{step.name}/{place}", reader)
            else:
                output = np.zeros(count * step.nbytes // step.shape[0], np.uint8)
            yield position, output.view(np.uint8)
            position += output.nbytes


def _row_piece(piece: Piece, first: int, count: int, reader: TensorReader) -> Array:
    """Read rows ``first`` to ``first + count`` of one head."""
    row = piece.tensor.nbytes // piece.tensor.shape[0]
    return _stored(reader.read(piece.tensor, (piece.start + first) * row, count * row), piece.tensor.dtype)


def _heads_along_columns(
    step: Step, rule: str, seed: int, reader: TensorReader
) -> Iterator[tuple[int, Bytes]]:
    """Compute heads that are runs of columns: whole rows are read, a few at a time."""
    source = step.source
    rows, columns = source.shape
    row_bytes = source.nbytes // rows
    # a merged head's shares and checks need all its rows
    is_merged = any(len(head.pieces) > 1 for head in step.heads)
    per_chunk = rows if is_merged else max(1, PIECE_BYTES // row_bytes)
    position = 0
    for first in range(0, rows, per_chunk):
        count = min(per_chunk, rows - first)
        stored = _stored(reader.read(source, first * row_bytes, count * row_bytes), source.dtype).reshape(
            count, columns
        )
        parts = []
        for place, head in enumerate(step.heads):
            pieces = [
                np.ascontiguousarray(stored[:, piece.start : piece.start + step.size])
                for piece in head.pieces
            ]
            if pieces:
                part = _one_head(step, head, pieces, rule, f"{seed}/{step.name}/{place}", reader)
            else:
                part = np.zeros(count * step.size, STORED[step.dtype])
            parts.append(part.reshape(count, step.size))
        output = np.ascontiguousarray(np.concatenate(parts, axis=1))
        yield position, output.reshape(-1).view(np.uint8)
        position += output.nbytes


def _one_head(
    step: Step, head: OutputHead, stored: list[Array], rule: str, seed: str, reader: TensorReader
) -> Array:
    """Return one stored head of the result, as stored elements of the step's dtype."""
    dtype = step.source.dtype
    if len(stored) == 1 and dtype == step.dtype:
        return stored[0]
    heads = [decode(piece, dtype) for piece in stored]
    merge_rule = RULES[rule]
    if len(heads) == 1:
        values = heads[0]
    elif merge_rule.starts_afresh and step.content == "weight":
        values = fresh_head(heads, seed)
    elif merge_rule.starts_afresh and step.content == "bias":
        values = np.zeros_like(heads[0])
    elif merge_rule.reads_weights and step.content != "weight":
        values = merge(heads, merge_rule.shares(_weight_heads(head, step, reader)))
    else:
        values = merge(heads, merge_rule.shares(heads))
    output = encode(values, step.dtype)
    tensors = tuple(piece.tensor for piece in head.pieces)
    if rule == "first":  # the other heads leave no trace in the output
        _check_finite(np.concatenate(stored, axis=None), replace(step, dtype=dtype), tensors, *stored)
    _check_finite(output, step, tensors, *stored)
    return output


def _weight_heads(head: OutputHead, step: Step, reader: TensorReader) -> list[Array]:
    """Read the weights of the heads that a bias or a norm belongs to."""
    size = step.size
    if head.weights_axis == 0:
        return [decode(_row_piece(piece, 0, size, reader), piece.tensor.dtype) for piece in head.weights]
    weight = head.weights[0].tensor
    stored = _stored(reader.read(weight), weight.dtype).reshape(weight.shape)
    return [decode(stored[:, piece.start : piece.start + size], weight.dtype) for piece in head.weights]


def _stored(data: Bytes, dtype: str) -> Array:
    return data.view(STORED[dtype])


def _check_finite(output: Array, step: Step, tensors: tuple[StoredTensor, ...], *stored: Array) -> None:
    if is_finite(output, step.dtype):
        return
    for tensor, piece in zip(tensors, stored, strict=True):
        if not is_finite(piece, tensor.dtype):
            raise WeightError(
                f"{tensor.file}: {tensor.name!r} holds NaN or infinity, so it cannot be merged or cast; "
                "use an undamaged checkpoint"
            )
    raise WeightError(
        f"{step.name!r} does not fit {step.dtype}: a value overflows; keep the dtype or use bfloat16"
    )
