"""Merging a block's projections together: keys with queries, values with the output projection."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.architectures import Attention, Projection
from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.errors import WeightError
from gqkva_convert.source.model import active_norms, has_bias, projection_tensor
from gqkva_convert.source.rotary import block_turning, rotary_features
from gqkva_convert.steps.blocks import head_start
from gqkva_convert.steps.step import Joint
from gqkva_convert.transforms.aligned import aligned_scores, aligned_values, restored
from gqkva_convert.transforms.closed_form import inner_products, shared_subspace
from gqkva_convert.transforms.precision import STORED, decode
from gqkva_convert.transforms.scores import Mixes, Reading, Scores, shared_scores

Array = NDArray[np.float64]
# A stored head of the result by role and number: (head_dim, inputs), the last input for the bias if there is
# one; for the output projection (head_dim, hidden_size).
Heads = dict[tuple[str, int], NDArray[Any]]


@dataclass(frozen=True)
class InputMoments:
    """Second moments of a block's inputs, a constant 1 behind them: None (identity), diagonal or full.

    Attributes:
        query: Of what queries are computed from.
        key: Of what keys and values are computed from; another in cross-attention.
    """

    query: Array | None
    key: Array | None


# Measured moments of a block by kind and layer, or None where only weights are known.
Measured = Callable[[str, int], InputMoments | None]
# Heads of a block that are made already.
Fitted = Callable[[str, int], Heads | None]


class JointMerges:
    """Merged blocks, kept while their tensors are being written.

    Args:
        reader: Where the source's bytes come from.
        measured: Moments measured on data; by default weights alone count.
        fitted: Heads of a block by kind and layer where they are made already; None where they are not.
        kept: How many blocks to keep; the four tensors of a block lie near each other in a checkpoint.
    """

    def __init__(
        self,
        reader: TensorReader,
        measured: Measured = lambda kind, layer: None,
        fitted: Fitted = lambda kind, layer: None,
        kept: int = 2,
    ) -> None:
        self.reader = reader
        self.measured = measured
        self.fitted = fitted
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
                found = self.fitted(*name)
                if found is None:
                    found = merge_block(joint, self.reader, self.measured(*name))
                self.done[name] = found
            self.done.move_to_end(name)
            return self.done[name]


def merge_block(joint: Joint, reader: TensorReader, measured: InputMoments | None = None) -> Heads:
    """Merge a block's heads by its rules, readers and what they read together.

    Args:
        joint: The block, its plan and its rules.
        reader: Where the source's bytes come from.
        measured: Second moments of its inputs; None for what weights alone tell (`gain_moments`).

    Raises:
        WeightError: Its weights hold NaN or infinity.
    """
    return merge_heads(joint, source_heads(joint, reader), gain_moments(joint, reader), measured)


def merge_heads(
    joint: Joint, source: dict[str, NDArray[Any]], gains: InputMoments, measured: InputMoments | None
) -> Heads:
    """Merge heads that have been read.

    Args:
        joint: The block, its plan and its rules.
        source: Heads of each role, as `source_heads` gives them.
        gains: Moments as far as weights tell.
        measured: Moments measured on data, if any.
    """
    plan = joint.plan
    dtype = source["key"].dtype
    rules = joint.rules
    result: Heads = {}
    outputs = [source["output"][head] for head in _order(joint)]
    squares: dict[int, Array] = {}
    for stored, members in enumerate(plan.groups("value")):
        rule = rules.values[stored]
        moments = gains if measured is None or rule in WEIGHTS_ALONE else measured
        rows = np.concatenate(source["value"][list(members)]).astype(np.float64)
        products = inner_products(rows, moments.key)
        for place, member in enumerate(members):
            span = slice(place * plan.source.head_dim, (place + 1) * plan.source.head_dim)
            squares[member] = products[span, span]
        result["value", stored] = source["value"][members[0]]
        if len(members) > 1:
            result["value", stored] = _merge_values(joint, rows, products, outputs, stored, rule)
    weights = _weights(joint, source["output"], squares)
    for place, output in enumerate(outputs):
        result["output", place] = output
    for component in _components(joint):
        rule = rules.scores[component[0].key]
        moments = gains if measured is None or rule in WEIGHTS_ALONE else measured
        result |= _merge_scores(joint, source, component, rule, moments, weights)
    return {name: np.asarray(head, dtype) for name, head in result.items()}


WEIGHTS_ALONE = frozenset({"closed-form-weights"})


@dataclass(frozen=True)
class _Place:
    """An attention head of the result, where it stands and what it reads; see `scores.Reading`."""

    place: int
    query: int
    query_member: int
    key: int
    key_member: int


def _order(joint: Joint) -> tuple[int, ...]:
    order = tuple(head for head in joint.plan.order if head is not None)
    assert len(order) == len(joint.plan.order)
    return order


def _components(joint: Joint) -> list[list[_Place]]:
    """Attention heads that share queries or keys, directly or through others."""
    plan = joint.plan
    query_groups, key_groups = plan.groups("query"), plan.groups("key")
    places = [
        _Place(
            place,
            query,
            query_groups[query].index(plan.source.query[head]),
            key,
            key_groups[key].index(plan.source.key[head]),
        )
        for place, (head, query, key) in enumerate(
            zip(_order(joint), plan.target.query, plan.target.key, strict=True)
        )
    ]
    found: list[list[_Place]] = []
    for place in places:
        touching = [
            part for part in found if any(place.query == one.query or place.key == one.key for one in part)
        ]
        found = [part for part in found if part not in touching]
        found.append([one for part in touching for one in part] + [place])
    return sorted((sorted(part, key=lambda one: one.place) for part in found), key=lambda part: part[0].place)


def _merge_values(
    joint: Joint,
    rows: Array,
    products: Array,
    outputs: list[NDArray[Any]],
    stored: int,
    rule: str,
) -> Array:
    """One value head for a group, from its rows and their products; changes the ``outputs`` that read it."""
    plan = joint.plan
    group = plan.groups("value")[stored]
    readers_of = [
        (place, group.index(plan.source.value[head]))
        for place, (head, target) in enumerate(zip(_order(joint), plan.target.value, strict=True))
        if target == stored
    ]
    count, head_dim = len(group), plan.source.head_dim
    if rule.startswith("closed-form"):
        readers = np.zeros((count, head_dim, head_dim))
        for place, member in readers_of:
            output = outputs[place].astype(np.float64)
            readers[member] += output @ output.T
        combination, absorbed = shared_subspace(products, readers)
        mix = combination.transpose(1, 0, 2).reshape(head_dim, -1)
    else:
        absorbed = np.stack([np.eye(head_dim)] * count)
        if rule.startswith("aligned"):
            absorbed = aligned_values(products, head_dim)
        mix = absorbed.transpose(1, 0, 2).reshape(head_dim, -1) / count
        if rule == "aligned-rescaled":
            mix = restored(mix, products)
    for place, member in readers_of:
        outputs[place] = absorbed[member] @ outputs[place]
    shared: Array = mix @ rows
    return shared


def _merge_scores(
    joint: Joint,
    source: dict[str, NDArray[Any]],
    places: list[_Place],
    rule: str,
    moments: InputMoments,
    weights: Array,
) -> Heads:
    """Shared queries and keys for attention heads that hang together."""
    plan = joint.plan
    slots = {
        "query": sorted({place.query for place in places}),
        "key": sorted({place.key for place in places}),
    }
    rows = {
        (role, slot): np.concatenate(source[role][list(plan.groups(role)[slot])]).astype(np.float64)
        for role, used in slots.items()
        for slot in used
    }
    head_dim = plan.source.head_dim
    if all(len(found) == head_dim for found in rows.values()):
        return dict(rows)
    products = {
        (role, slot): inner_products(found, moments.query if role == "query" else moments.key)
        for (role, slot), found in rows.items()
    }
    scores = Scores(
        tuple(
            Reading(
                slots["query"].index(place.query),
                place.query_member,
                slots["key"].index(place.key),
                place.key_member,
            )
            for place in places
        ),
        tuple(products["query", slot] for slot in slots["query"]),
        tuple(products["key", slot] for slot in slots["key"]),
        _relative(weights[[place.place for place in places]]),
        head_dim,
    )
    queries, keys = _mixes(joint, scores, rule)
    return {
        (role, slot): mix @ rows[role, slot]
        for role, mixes in (("query", queries), ("key", keys))
        for slot, mix in zip(slots[role], mixes, strict=True)
    }


def _mixes(joint: Joint, scores: Scores, rule: str) -> tuple[Mixes, Mixes]:
    """How members become shared queries and keys under a rule."""
    first, second = rotary_features(joint.model, joint.block)
    norms = active_norms(joint.model.config, joint.block.attention)
    if norms or rule == "mean":
        # A norm passes half turns on, and even those not if it takes a mean away first.
        if rule != "mean" and not any(norm.is_centred for norm in norms):
            return aligned_scores(scores, first, second, signs_only=True)
        return _means(scores)
    if rule.startswith("closed-form"):
        return shared_scores(scores, block_turning(joint.model, joint.block), first, second)
    queries, keys = aligned_scores(scores, first, second)
    if rule == "aligned-rescaled":
        queries = [restored(mix, found) for mix, found in zip(queries, scores.queries, strict=True)]
        keys = [restored(mix, found) for mix, found in zip(keys, scores.keys, strict=True)]
    return queries, keys


def _means(scores: Scores) -> tuple[Mixes, Mixes]:
    def mean(products: Array) -> Array:
        count = len(products) // scores.head_dim
        return np.concatenate([np.eye(scores.head_dim) / count] * count, axis=1)

    return [mean(products) for products in scores.queries], [mean(products) for products in scores.keys]


def _weights(joint: Joint, outputs: NDArray[Any], squares: dict[int, Array]) -> Array:
    """How much each head's scores matter: the root of the energy of what it can add to the output.

    Args:
        joint: The block.
        outputs: The source's output blocks.
        squares: For each of the source's value heads the products of its features.
    """
    energies = []
    for head in _order(joint):
        output = outputs[head].astype(np.float64)
        energies.append(float(np.sum(squares[joint.plan.source.value[head]] * (output @ output.T))))
    result: Array = np.sqrt(np.maximum(energies, 0))
    return result


def _relative(weights: Array) -> Array:
    """Weights of heads that hang together, 1 on average; dead heads keep a little."""
    mean = weights.mean()
    return np.maximum(weights / mean, 1e-3) if mean > 0 else np.ones(len(weights))


def gain_moments(joint: Joint, reader: TensorReader) -> InputMoments:
    """Second moments of the block's inputs as far as weights tell: the squared gain of the norm before it."""
    template = joint.block.attention.input_gain
    tensor = joint.model.checkpoint.tensors.get(joint.block.tensor_name(template)) if template else None
    if tensor is None:
        return InputMoments(None, None)
    gain = decode(reader.read(tensor).view(STORED[tensor.dtype]), tensor.dtype).astype(np.float64)
    squares = np.square(gain + joint.block.attention.gain_offset)
    if has_input_bias(joint.model.config, joint.block.attention):
        squares = np.concatenate([squares, [1.0]])  # a constant input carries the bias
    return InputMoments(squares, squares)


def has_input_bias(config: dict[str, Any], attention: Attention) -> bool:
    """Whether queries, keys or values have biases, which are then all kept as weights of a constant input."""
    return any(
        has_bias(config, projection.bias)
        for projection in attention.projections
        if projection.roles != ("output",)
    )


def source_heads(joint: Joint, reader: TensorReader) -> dict[str, NDArray[Any]]:
    """A block's heads by role, ``(heads, head_dim, inputs)``; a bias is the last input of q, k and v.

    Raises:
        WeightError: They hold NaN or infinity.
    """
    return {role: _role_heads(joint, role, reader) for role in ("query", "key", "value", "output")}


def _role_heads(joint: Joint, role: str, reader: TensorReader) -> NDArray[Any]:
    projection = next(p for p in joint.block.attention.projections if role in p.roles)
    weight = _rows(joint, projection, "weight", reader)
    if role != "output" and has_input_bias(joint.model.config, joint.block.attention):
        if has_bias(joint.model.config, projection.bias):
            bias = _rows(joint, projection, "bias", reader)
        else:
            bias = np.zeros((len(weight), 1), weight.dtype)
        weight = np.concatenate([weight, bias], axis=1)
    layout = joint.plan.source
    count = layout.num_attention_heads if role == "output" else len(set(layout.stored_heads(role)))
    starts = [head_start(projection, joint.plan, role, head) for head in range(count)]
    return np.stack([weight[start : start + layout.head_dim] for start in starts])


def _rows(joint: Joint, projection: Projection, part: str, reader: TensorReader) -> NDArray[Any]:
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
    rows: NDArray[Any] = values if projection.head_axis == 0 else values.T
    return rows
