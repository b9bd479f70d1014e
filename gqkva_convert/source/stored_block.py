"""An attention block as the source stores it, as plain data, and its heads read from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.architectures import HeadNorm, Projection
from gqkva_convert.checkpoint.dtypes import FLOATS
from gqkva_convert.checkpoint.header import StoredTensor
from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.errors import FamilyError, WeightError
from gqkva_convert.heads import ROLES, HeadLayout, Place, place_name
from gqkva_convert.source.model import Block, SourceModel, active_norms, has_bias, stored_count
from gqkva_convert.source.rotary import RotaryPlanes, rotary_planes
from gqkva_convert.transforms.blocks import InputMoments
from gqkva_convert.transforms.precision import STORED, decode, is_finite


@dataclass(frozen=True)
class StoredProjection:
    """One projection of a block and where its heads begin.

    Attributes:
        weight: Its weight.
        bias: Its bias, if it has one; an output projection's has no head axis.
        head_axis: Axis of the weight that runs over heads.
        packing: Order of the heads of several roles; see `Projection`.
        starts: For each role, the first entry of each stored head along the head axis.
    """

    weight: StoredTensor
    bias: StoredTensor | None
    head_axis: int
    packing: str
    starts: dict[str, tuple[int, ...]]

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self.starts)


@dataclass(frozen=True)
class StoredBlock:
    """What merging needs to know of a block; no model, no weights.

    Attributes:
        place: Kind of attention and layer.
        layout: How its attention heads read its stored heads.
        projections: Its projections; together they hold each role once.
        norms: Norms on queries and keys that the configuration turns on.
        planes: Its rotary planes.
        gain: Gain of the norm before queries, keys and values, where the checkpoint stores one.
        gain_offset: What the model adds to it.
        keeps_order: Whether a position bias binds its heads to their index.
    """

    place: Place
    layout: HeadLayout
    projections: tuple[StoredProjection, ...]
    norms: tuple[HeadNorm, ...]
    planes: RotaryPlanes
    gain: StoredTensor | None
    gain_offset: float
    keeps_order: bool

    @property
    def where(self) -> str:
        return place_name(self.place)

    @property
    def has_input_bias(self) -> bool:
        """Return whether queries, keys or values have biases; all three then read a constant last input."""
        return any(one.bias is not None for one in self.projections if "output" not in one.roles)

    @property
    def norm(self) -> Literal["none", "plain", "centred"]:
        """Return the kind of norm between projections and scores."""
        if not self.norms:
            return "none"
        return "centred" if any(norm.is_centred for norm in self.norms) else "plain"

    def projection(self, role: str) -> StoredProjection:
        """Return the projection that holds a role."""
        return next(one for one in self.projections if role in one.roles)


def stored_block(model: SourceModel, block: Block) -> StoredBlock:
    """Look up what merging needs to know of a block; reads no weights.

    Raises:
        FamilyError: A tensor is missing, or its shape does not fit the number of heads.
        WeightError: Its dtype cannot be merged.
    """
    facts, gain = block.attention, block.attention.input_gain
    return StoredBlock(
        block.place,
        block.layout,
        tuple(_stored_projection(model, block, projection) for projection in facts.projections),
        tuple(active_norms(model.config, facts)),
        rotary_planes(model, block),
        model.checkpoint.tensors.get(block.tensor_name(gain)) if gain else None,
        facts.gain_offset,
        facts.head_bias is not None,
    )


def _stored_projection(model: SourceModel, block: Block, projection: Projection) -> StoredProjection:
    layout, axis = block.layout, projection.head_axis
    counts = {role: stored_count(layout, role) for role in projection.roles}
    size = sum(counts.values()) * layout.head_dim
    weight, bias = _check_tensor(model, block, f"{projection.name}.weight", axis, size, 2), None
    if has_bias(model.config, projection.bias):
        size = 0 if projection.roles == ("output",) else size
        bias = _check_tensor(model, block, f"{projection.name}.bias", 0, size, 1)
    starts = {}
    for place, (role, count) in enumerate(counts.items()):
        if is_side_by_side(projection.packing, projection.roles, layout):
            numbers = range(place, place + count * len(counts), len(counts))
        else:
            before = sum(list(counts.values())[:place])
            numbers = range(before, before + count)
        starts[str(role)] = tuple(number * layout.head_dim for number in numbers)
    return StoredProjection(weight, bias, axis, projection.packing, starts)


def _check_tensor(
    model: SourceModel, block: Block, template: str, axis: int, size: int, axes: int
) -> StoredTensor:
    """Return a tensor of a block, checked against its layout unless ``size`` along the axis is 0."""
    name = block.tensor_name(template)
    tensor = model.checkpoint.tensors.get(name)
    if tensor is None:
        raise FamilyError(f"{block.where}: {name!r} is not in {model.checkpoint.folder}")
    if tensor.dtype not in FLOATS:
        raise WeightError(
            f"{block.where}: {name!r} is stored as {tensor.dtype}, which cannot be merged; "
            f"convert a checkpoint in {', '.join(FLOATS.values())}"
        )
    if size and (len(tensor.shape) != axes or tensor.shape[axis] != size):
        raise FamilyError(
            f"{block.where}: {name!r} has shape {list(tensor.shape)}, the configuration asks for "
            f"{size} along axis {axis} ({block.layout.num_attention_heads} attention heads, "
            f"{block.layout.num_key_heads} key/value heads of {block.layout.head_dim})"
        )
    return tensor


def is_side_by_side(packing: str, roles: tuple[str, ...], layout: HeadLayout) -> bool:
    """Return whether q, k and v of each head are neighbours; otherwise all q come first, then k, then v."""
    return packing == "per_head" and len({stored_count(layout, role) for role in roles}) == 1


class StoredHeads(Sequence[NDArray[Any]]):
    """The stored heads of one role of a block, each read and decoded when it is asked for.

    A head is ``(head_dim, inputs)``, as `decode` gives it; a bias is the last input of q, k and v.

    Raises:
        WeightError: A head that is read holds NaN or infinity.
    """

    def __init__(self, block: StoredBlock, role: str, reader: TensorReader) -> None:
        self.projection = block.projection(role)
        self.starts = self.projection.starts[role]
        self.head_dim = block.layout.head_dim
        self.has_bias = role != "output" and block.has_input_bias
        self.reader = reader

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, head: Any) -> Any:
        start = self.starts[head]
        rows = self._rows(start)
        if not self.has_bias:
            return rows
        bias = np.zeros(len(rows), rows.dtype)
        if self.projection.bias is not None:
            bias = _decode_finite(self._bias[start : start + self.head_dim], self.projection.bias)
        return np.concatenate([rows, bias[:, None]], axis=1)

    def _rows(self, start: int) -> NDArray[Any]:
        weight, size = self.projection.weight, self.head_dim
        if self.projection.head_axis == 1:
            columns: NDArray[Any] = self._columns[:, start : start + size]
            head: NDArray[Any] = _decode_finite(np.ascontiguousarray(columns), weight).T
            return head
        row = weight.nbytes // weight.shape[0]
        stored = self.reader.read(weight, start * row, size * row).view(STORED[weight.dtype])
        return _decode_finite(stored.reshape(size, -1), weight)

    @cached_property
    def _columns(self) -> NDArray[Any]:
        """Read the stored elements of a weight whose columns are heads."""
        weight = self.projection.weight
        return self.reader.read(weight).view(STORED[weight.dtype]).reshape(weight.shape)

    @cached_property
    def _bias(self) -> NDArray[Any]:
        bias = self.projection.bias
        assert bias is not None
        return self.reader.read(bias).view(STORED[bias.dtype])


def stored_heads(block: StoredBlock, reader: TensorReader) -> dict[str, StoredHeads]:
    """Return a block's stored heads by role, none of them read yet."""
    return {role: StoredHeads(block, role, reader) for role in (*ROLES, "output")}


def read_heads(block: StoredBlock, reader: TensorReader) -> dict[str, NDArray[Any]]:
    """Read a block's stored heads, by role ``(heads, head_dim, inputs)``, as `StoredHeads` gives them.

    Raises:
        WeightError: They hold NaN or infinity.
    """
    return {role: np.stack(list(heads)) for role, heads in stored_heads(block, reader).items()}


def gain_moments(block: StoredBlock, reader: TensorReader) -> InputMoments:
    """Return second moments of a block's inputs from weights alone: squared gains of the norm before it."""
    if block.gain is None:
        return InputMoments(None, None)
    stored = reader.read(block.gain).view(STORED[block.gain.dtype])
    gain = decode(stored, block.gain.dtype).astype(np.float64)
    squares = np.square(gain + block.gain_offset)
    if block.has_input_bias:
        squares = np.concatenate([squares, [1.0]])  # a constant input carries the bias
    return InputMoments(squares, squares)


def _decode_finite(stored: NDArray[Any], tensor: StoredTensor) -> NDArray[Any]:
    if not is_finite(stored, tensor.dtype):
        raise WeightError(
            f"{tensor.file}: {tensor.name!r} holds NaN or infinity, so it cannot be merged; "
            "use an undamaged checkpoint"
        )
    return decode(stored, tensor.dtype)
