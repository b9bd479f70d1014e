"""Merging a block's projections together: keys with queries, values with the output projection."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.architectures import Projection
from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.conversion.model import active_norms, has_bias, projection_tensor, rotary_features
from gqkva_convert.conversion.steps import Joint, head_start
from gqkva_convert.errors import WeightError
from gqkva_convert.transforms.closed_form import inner_products, shared_planes, shared_subspace
from gqkva_convert.transforms.precision import STORED, decode

Array = NDArray[np.float64]
# A stored head of the result by role and number: (head_dim, inputs), the last input for the bias if there is
# one; for the output projection (head_dim, hidden_size).
Heads = dict[tuple[str, int], Array]


class JointMerges:
    """Merged blocks, kept while their tensors are being written.

    Args:
        reader: Where the source's bytes come from.
        kept: How many blocks to keep; the four tensors of a block lie near each other in a checkpoint.
    """

    def __init__(self, reader: TensorReader, kept: int = 2) -> None:
        self.reader = reader
        self.kept = kept
        self.done: OrderedDict[tuple[str, int], Heads] = OrderedDict()
        self.lock = threading.Lock()

    def heads(self, joint: Joint) -> Heads:
        """The merged heads of a block."""
        name = joint.block.attention.kind, joint.block.layer
        with self.lock:
            if name not in self.done:
                while len(self.done) >= self.kept:
                    self.done.popitem(last=False)
                self.done[name] = merge_block(joint, self.reader)
            self.done.move_to_end(name)
            return self.done[name]


def merge_block(joint: Joint, reader: TensorReader) -> Heads:
    """Merge a block in closed form (see `transforms.closed_form`).

    Raises:
        WeightError: Its weights hold NaN or infinity.
    """
    plan = joint.plan
    source = {role: _source_heads(joint, role, reader) for role in ("query", "key", "value", "output")}
    moment = _moment(joint, reader, source["key"].shape[2])
    queries = [source["query"][plan.source.query[head]] for head in _order(joint)]
    outputs = [source["output"][head] for head in _order(joint)]
    result: Heads = {}
    for role, heads in (("key", source["key"]), ("value", source["value"])):
        for stored, group in enumerate(plan.groups(role)):
            places = [place for place, head in enumerate(plan.target.stored_heads(role)) if head == stored]
            read = [group.index(plan.source.stored_heads(role)[_order(joint)[place]]) for place in places]
            members = heads[list(group)].astype(np.float64)
            if len(group) == 1:
                result[role, stored] = members[0]
            elif role == "value":
                result[role, stored] = _merge_values(members, outputs, places, read, moment)
            elif active_norms(joint.model.config, joint.block.attention):
                # Queries cannot absorb across a norm what merged keys lose.
                result[role, stored] = members.mean(axis=0)
            else:
                result[role, stored] = _merge_keys(joint, members, queries, places, read, moment)
    for place, (query, output) in enumerate(zip(queries, outputs, strict=True)):
        result["query", plan.target.query[place]] = query
        result["output", place] = output
    return result


def _order(joint: Joint) -> tuple[int, ...]:
    order = tuple(head for head in joint.plan.order if head is not None)
    assert len(order) == len(joint.plan.order)
    return order


def _merge_values(
    members: Array, outputs: list[Array], places: list[int], read: list[int], moment: Array | None
) -> Array:
    """One value head for a group; puts what its readers absorb into ``outputs``."""
    head_dim = members.shape[1]
    readers = np.zeros((len(members), head_dim, head_dim))
    for place, member in zip(places, read, strict=True):
        output = outputs[place].astype(np.float64)
        readers[member] += output @ output.T
    combination, absorbed = shared_subspace(members, readers, moment)
    for place, member in zip(places, read, strict=True):
        outputs[place] = absorbed[member] @ outputs[place]
    shared: Array = np.einsum("sij,sjk->ik", combination, members, optimize=True)
    return shared


def _merge_keys(
    joint: Joint,
    members: Array,
    queries: list[Array],
    places: list[int],
    read: list[int],
    moment: Array | None,
) -> Array:
    """One key head for a group; puts what its readers absorb into ``queries``."""
    first, second = rotary_features(joint.model, joint.block)
    still = sorted(set(range(members.shape[1])) - {*first, *second})
    shared: Array = np.empty_like(members[0])
    changed = {place: queries[place].astype(np.float64) for place in places}
    if first:
        energies = np.zeros((len(members), len(first)))
        for place, member in zip(places, read, strict=True):
            squares = _squares(changed[place], moment)
            energies[member] += squares[first] + squares[second]
        planes = members[:, first] + 1j * members[:, second]
        combination, factors = shared_planes(planes, energies, moment)
        merged = np.einsum("sp,spi->pi", combination, planes)
        shared[first], shared[second] = merged.real, merged.imag
        for place, member in zip(places, read, strict=True):
            query = changed[place]
            turned = factors[member][:, None] * (query[first] + 1j * query[second])
            query[first], query[second] = turned.real, turned.imag
    if still:
        readers = np.zeros((len(members), len(still), len(still)))
        for place, member in zip(places, read, strict=True):
            readers[member] += inner_products(changed[place][still], moment)
        mixing, absorbed = shared_subspace(members[:, still], readers, moment)
        shared[still] = np.einsum("sij,sjk->ik", mixing, members[:, still], optimize=True)
        for place, member in zip(places, read, strict=True):
            changed[place][still] = absorbed[member] @ changed[place][still]
    for place, query in changed.items():
        queries[place] = query
    return shared


def _squares(rows: Array, moment: Array | None) -> Array:
    """``E (w' x)^2`` of each row."""
    if moment is None or moment.ndim == 1:
        return np.asarray(np.square(rows) @ (np.ones(rows.shape[1]) if moment is None else moment))
    return np.asarray(np.einsum("ri,ij,rj->r", rows, moment, rows, optimize=True))


def _moment(joint: Joint, reader: TensorReader, inputs: int) -> Array | None:
    """Second moments of the block's inputs as far as weights tell: the squared gain of the norm before it."""
    template = joint.block.attention.input_gain
    tensor = joint.model.checkpoint.tensors.get(joint.block.tensor_name(template)) if template else None
    if tensor is None:
        return None
    gain = decode(reader.read(tensor).view(STORED[tensor.dtype]), tensor.dtype).astype(np.float64)
    squares = np.square(gain + joint.block.attention.gain_offset)
    # A constant input carries the bias.
    return np.concatenate([squares, np.ones(inputs - len(squares))])


def _source_heads(joint: Joint, role: str, reader: TensorReader) -> Array:
    """A role's heads of the source, ``(heads, head_dim, inputs)``; a bias is their last input."""
    projection = next(p for p in joint.block.attention.projections if role in p.roles)
    weight = _rows(joint, projection, "weight", reader)
    if role != "output" and has_bias(joint.model.config, projection.bias):
        weight = np.concatenate([weight, _rows(joint, projection, "bias", reader)], axis=1)
    layout = joint.plan.source
    count = layout.num_attention_heads if role == "output" else len(set(layout.stored_heads(role)))
    starts = [head_start(projection, joint.plan, role, head) for head in range(count)]
    return np.stack([weight[start : start + layout.head_dim] for start in starts])


def _rows(joint: Joint, projection: Projection, part: str, reader: TensorReader) -> Array:
    """A projection's weight with heads along its rows, or its bias as a column."""
    tensor = projection_tensor(joint.model, joint.block, projection, part)
    assert tensor is not None
    values = decode(reader.read(tensor).view(STORED[tensor.dtype]), tensor.dtype).reshape(tensor.shape)
    if not np.isfinite(values).all():
        raise WeightError(
            f"{tensor.file}: {tensor.name!r} holds NaN or infinity, so it cannot be merged; "
            "use an undamaged checkpoint"
        )
    if part == "bias":
        return values[:, None]
    rows: Array = values if projection.head_axis == 0 else values.T
    return rows
