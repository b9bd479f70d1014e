"""Merging all heads of one attention block: values with the output projection, keys with the queries.

Arrays and maps of heads alone. Values merge by `closed_form` (Eckart and Young, 1936) or `aligned` (Jin et
al., 2024, arXiv 2412.20677), queries and keys by `scores` or `aligned`; each module states its equation.

Products with a block's inputs are in the dtype of its heads, which is wider than the stored one; what heads
are mixed by is computed from them in float64. Where a bias or measured moments come in, inner products are
float64 too: a few strong directions would hide the others behind float32's rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gqkva_convert.heads import HeadLayout, merged_groups
from gqkva_convert.transforms.aligned import aligned_scores, aligned_values, rescale
from gqkva_convert.transforms.closed_form import inner_products, noise_share, shared_subspace
from gqkva_convert.transforms.merge import RULES
from gqkva_convert.transforms.rotary_averages import Turning
from gqkva_convert.transforms.scores import Mixes, ScoredHead, Scores, shared_scores

Array = NDArray[np.float64]
# Stored heads of the source by role and number, ``(head_dim, inputs)`` each; a bias is the last input of q, k
# and v. A head may be read when it is asked for.
SourceHeads = Mapping[str, Any]
# A stored head of the result by role and number: ``(head_dim, inputs)``, the last input for the bias if there
# is one; for the output projection ``(head_dim, hidden_size)``.
Heads = dict[tuple[str, int], NDArray[Any]]


@dataclass(frozen=True)
class InputMoments:
    """Second moments of a block's inputs, a constant 1 behind them: None (identity), diagonal or full.

    Attributes:
        query: Of what queries are computed from, ``(inputs,)`` or ``(inputs, inputs)``.
        key: Of what keys and values are computed from; another in cross-attention.
    """

    query: Array | None
    key: Array | None


@dataclass(frozen=True)
class HeadMerge:
    """How the heads of one block merge.

    Attributes:
        source: Layout of the source.
        target: Layout of the result.
        order: Source attention head that each attention head of the result was.
        score_rules: For each stored key head of the result, the rule that it and its queries merge by.
        value_rules: For each stored value head of the result, the rule that it merges by.
        first: First feature of each rotary plane; the other features do not turn.
        second: Second feature of each rotary plane.
        turning: Averages over distances; needed by the closed form where no norm follows.
        norm: Norm on queries or keys between projection and score; a ``centred`` one subtracts the mean.
        has_bias: Whether the last input of queries, keys and values is a constant that carries biases.
    """

    source: HeadLayout
    target: HeadLayout
    order: tuple[int, ...]
    score_rules: tuple[str, ...]
    value_rules: tuple[str, ...]
    first: tuple[int, ...] = ()
    second: tuple[int, ...] = ()
    turning: Turning | None = None
    norm: Literal["none", "plain", "centred"] = "none"
    has_bias: bool = False

    def groups(self, role: str) -> tuple[tuple[int, ...], ...]:
        """Return the source's stored heads behind each stored head of a role."""
        return merged_groups(self.order, self.source.stored_heads(role), self.target.stored_heads(role))

    def inner_products(self, rows: NDArray[Any], moment: Array | None) -> NDArray[Any]:
        """Return `closed_form.inner_products` of rows of queries, keys or values."""
        return inner_products(rows.astype(np.float64) if self.has_bias else rows, moment)

    def members(self, role: str) -> list[tuple[int, int]]:
        """Return the stored head that each attention head of the result reads, and its place in the group."""
        groups, source, target = (
            self.groups(role),
            *(one.stored_heads(role) for one in (self.source, self.target)),
        )
        return [(one, groups[one].index(source[head])) for head, one in zip(self.order, target, strict=True)]


def merge_heads(
    merge: HeadMerge, heads: SourceHeads, gains: InputMoments, measured: InputMoments | None
) -> Heads:
    """Merge a block's heads by its rules, together with the weights that read them.

    Args:
        merge: Groups and rules.
        heads: The source's heads.
        gains: Moments of the inputs as estimated from weights.
        measured: Moments measured on data; None to use ``gains``.

    Returns:
        Every stored head of the result, in the dtype of ``heads``; output blocks by their place.
    """
    result: Heads = {}
    weights = np.zeros(len(merge.order))
    for stored, (members, rule) in enumerate(zip(merge.groups("value"), merge.value_rules, strict=True)):
        places = [place for place, (one, _) in enumerate(merge.members("value")) if one == stored]
        outputs = {place: heads["output"][merge.order[place]] for place in places}
        rows = _rows(heads["value"], members)
        products = merge.inner_products(rows, _moments(rule, gains, measured).key)
        readers = {place: inner_products(output, None) for place, output in outputs.items()}
        for place, energy in _energies(merge, products, readers).items():
            weights[place] = np.sqrt(max(energy, 0))
        if len(members) > 1:
            rows, outputs = _merge_values(merge, rows, products, outputs, readers, stored)
        result["value", stored] = rows
        result |= {("output", place): output for place, output in outputs.items()}
    pairs = zip(merge.members("query"), merge.members("key"), strict=True)
    scored = [ScoredHead(*query, *key) for query, key in pairs]
    for component in _components(scored):
        some = [scored[place] for place in component]
        moments = _moments(merge.score_rules[some[0].key], gains, measured)
        result |= _merge_scores(merge, heads, some, moments, _relative(weights[component]))
    return result


def _rows(heads: Any, members: Sequence[int]) -> NDArray[Any]:
    """Return the features of some heads, ``(members * head_dim, inputs)``."""
    return np.concatenate([heads[member] for member in members])


def _mixed(mix: Array, rows: NDArray[Any]) -> NDArray[Any]:
    """Multiply rows of weights in their own dtype."""
    result: NDArray[Any] = mix.astype(rows.dtype, copy=False) @ rows
    return result


def _moments(rule: str, gains: InputMoments, measured: InputMoments | None) -> InputMoments:
    return gains if measured is None or RULES[rule].ignores_data else measured


def _energies(
    merge: HeadMerge, products: NDArray[Any], readers: Mapping[int, NDArray[Any]]
) -> dict[int, float]:
    """Return the energy ``E |R' v|^2`` of the outputs of attention heads that read one value group.

    Args:
        merge: The block's merge.
        products: ``E v v'`` of the group's heads, ``(members * head_dim, members * head_dim)``.
        readers: ``R R'`` of each attention head's output block, by its place in the result.
    """
    head_dim, members = merge.source.head_dim, merge.members("value")
    blocks = products.reshape(len(products) // head_dim, head_dim, -1, head_dim)
    return {
        place: float(np.vdot(blocks[members[place][1], :, members[place][1]].astype(np.float64), reader))
        for place, reader in readers.items()
    }


def _components(heads: Sequence[ScoredHead]) -> list[list[int]]:
    """Return the places of attention heads that share queries or keys, directly or through others."""
    from scipy.sparse.csgraph import connected_components

    queries, keys = [head.query for head in heads], [head.key for head in heads]
    count, labels = connected_components(np.equal.outer(queries, queries) | np.equal.outer(keys, keys))
    return [np.flatnonzero(labels == number).tolist() for number in range(count)]


def _merge_values(
    merge: HeadMerge,
    rows: NDArray[Any],
    products: NDArray[Any],
    outputs: Mapping[int, NDArray[Any]],
    readers: Mapping[int, NDArray[Any]],
    stored: int,
) -> tuple[NDArray[Any], dict[int, NDArray[Any]]]:
    """Merge one group of value heads.

    Args:
        merge: The block's merge.
        rows: The group's heads, ``(members * head_dim, inputs)``.
        products: Inner products of the rows, ``(members * head_dim, members * head_dim)``.
        outputs: Output blocks that read the group, by place, ``(head_dim, hidden_size)`` each.
        readers: Inner products of their rows, ``(head_dim, head_dim)`` each.
        stored: Number of the group.

    Returns:
        The shared head, ``(head_dim, inputs)``, and the output blocks that read it.
    """
    rule, members = RULES[merge.value_rules[stored]], merge.members("value")
    head_dim = merge.source.head_dim
    count = len(products) // head_dim
    if rule.group_method == "closed-form":
        summed = np.zeros((count, head_dim, head_dim))
        for place, reader in readers.items():
            summed[members[place][1]] += reader
        combination, absorbed = shared_subspace(products, summed)
        mix = combination.transpose(1, 0, 2).reshape(head_dim, -1)
    else:
        products = products.astype(np.float64, copy=False)
        absorbed = np.stack([np.eye(head_dim)] * count)
        if rule.group_method == "aligned":
            absorbed = aligned_values(products, head_dim)
        mix = absorbed.transpose(1, 0, 2).reshape(head_dim, -1) / count
        if rule.rescales:
            mix = rescale(mix, products)
    # Output blocks are columns of most stored weights; transposed, they stay what they are in memory.
    return _mixed(mix, rows), {
        place: (output.T @ absorbed[members[place][1]].T.astype(output.dtype)).T
        for place, output in outputs.items()
    }


def _merge_scores(
    merge: HeadMerge,
    heads: SourceHeads,
    scored: Sequence[ScoredHead],
    moments: InputMoments,
    weights: Array,
) -> Heads:
    """Merge queries and keys of connected attention heads ``scored``, of weights ``(len(scored),)``.

    Args:
        merge: The block's merge.
        heads: The source's heads.
        scored: The attention heads.
        moments: Moments of the inputs.
        weights: Weight of each attention head, ``(len(scored),)``.
    """
    head_dim = merge.source.head_dim
    slots = {"query": sorted({head.query for head in scored}), "key": sorted({head.key for head in scored})}
    rows = {
        (role, slot): _rows(heads[role], merge.groups(role)[slot])
        for role, used in slots.items()
        for slot in used
    }
    if all(len(found) == head_dim for found in rows.values()):
        return dict(rows)
    products = {
        (role, slot): merge.inner_products(found, moments.query if role == "query" else moments.key)
        for (role, slot), found in rows.items()
    }
    noise = max(noise_share(found.dtype) for found in products.values())
    numbered = tuple(
        ScoredHead(
            slots["query"].index(head.query), head.query_member, slots["key"].index(head.key), head.key_member
        )
        for head in scored
    )
    queries, keys = (
        tuple(products[role, slot].astype(np.float64, copy=False) for slot in slots[role])
        for role in ("query", "key")
    )
    planes, rule = (list(merge.first), list(merge.second)), merge.score_rules[scored[0].key]
    mixes = _mixes(merge, Scores(numbered, queries, keys, weights, head_dim, *planes, noise), rule)
    return {
        (role, slot): _mixed(mix, rows[role, slot])
        for role, found in zip(("query", "key"), mixes, strict=True)
        for slot, mix in zip(slots[role], found, strict=True)
    }


def _mixes(merge: HeadMerge, scores: Scores, name: str) -> tuple[Mixes, Mixes]:
    """Return the mix of members into shared queries and keys under a rule."""
    rule = RULES[name]
    # A norm passes half turns on, and even those not if it takes a mean away first.
    if rule.group_method == "mean" or merge.norm == "centred":
        return _means(scores)
    if merge.norm == "plain":
        return aligned_scores(scores, signs_only=True)
    if rule.group_method == "closed-form":
        assert merge.turning is not None
        return shared_scores(scores, merge.turning)
    queries, keys = aligned_scores(scores)
    if rule.rescales:
        queries = [rescale(mix, found) for mix, found in zip(queries, scores.queries, strict=True)]
        keys = [rescale(mix, found) for mix, found in zip(keys, scores.keys, strict=True)]
    return queries, keys


def _means(scores: Scores) -> tuple[Mixes, Mixes]:
    def mean(products: Array) -> Array:
        count = len(products) // scores.head_dim
        return np.tile(np.eye(scores.head_dim) / count, (1, count))

    return [mean(products) for products in scores.queries], [mean(products) for products in scores.keys]


def _relative(weights: Array) -> Array:
    """Normalise weights of attention heads, roots of their outputs' energies, to mean 1; at least 1e-3."""
    mean = weights.mean()
    return np.maximum(weights / mean, 1e-3) if mean > 0 else np.ones(len(weights))
