"""The grouped attention function against its definition."""

from __future__ import annotations

import copy
import itertools
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grouped_pairs import VARIANTS, layout
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.bert import modeling_bert

from gqkva_convert.heads import HeadLayout
from gqkva_convert.modeling.attention import HeadMaps, HeadSelection, grouped_attention


@given(st.data())
def test_a_selection_takes_the_heads_it_names(data: st.DataObject) -> None:
    """Views, slices and index tensors must all mean the same."""
    count = data.draw(st.integers(1, 6))
    heads = data.draw(
        st.one_of(
            st.lists(st.integers(0, count - 1), min_size=1, max_size=12),
            st.integers(1, 3).map(lambda size: list(range(count)) * size),
            st.integers(1, 3).map(lambda size: [head for head in range(count) for _ in range(size)]),
            st.permutations(range(count)),
        )
    )
    states = torch.arange(2 * count * 3).reshape(2, count, 3)
    selection = HeadSelection(tuple(heads), count)
    expected = states[:, heads]
    assert torch.equal(selection(states, 1), expected)
    sliced = torch.cat([states.narrow(1, start, length) for start, length in selection.runs], 1)
    assert torch.equal(sliced, expected)
    assert torch.equal(copy.deepcopy(selection)(states, 1), expected)
    assert torch.equal(pickle.loads(pickle.dumps(selection))(states, 1), expected)


@given(st.data())
def test_every_head_has_a_slot_in_the_group_it_reads(data: st.DataObject) -> None:
    """The grouped shape must lead each attention head to its own query, key and value."""
    count = data.draw(st.integers(1, 8))
    maps = [data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)) for _ in range(3)]
    dense = [tuple(sorted(set(heads)).index(head) for head in heads) for heads in maps]
    found = HeadMaps(HeadLayout(*dense, 4))
    for head in range(count):
        slot = found.heads.heads[head]
        assert found.queries.heads[slot] == dense[0][head]
        assert found.keys.heads[slot // found.group_size] == dense[1][head]
        assert found.values.heads[slot // found.group_size] == dense[2][head]
        member = slot % found.group_size * len(found.keys.heads) + slot // found.group_size
        assert found.heads_by_member.heads[head] == member


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_outputs_and_gradients_are_those_of_repeated_heads(variant: str, implementation: str) -> None:
    """In float64, against softmax attention written out over heads repeated by the maps.

    Eager attention is causal by its mask alone, so that several positions without one are not compared.
    """
    for positions, mask in itertools.product((1, 5), ("none", "shared", "per head")):
        if not (mask == "none" and implementation == "eager" and positions > 1):
            assert_as_repeated(variant, positions, mask, implementation)


def assert_as_repeated(variant: str, positions: int, mask: str, implementation: str) -> None:
    heads = layout(variant, 6, 4)
    generator = torch.Generator().manual_seed(0)
    counts = (heads.num_query_heads, heads.num_key_heads, heads.num_value_heads)
    states = [
        torch.randn(2, n, length, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for n, length in zip(counts, (positions, 7 if mask != "none" else positions + 2, 0), strict=True)
    ][:2]
    length = states[1].shape[2]
    states.append(
        torch.randn(2, counts[2], length, 4, generator=generator, dtype=torch.float64).requires_grad_()
    )
    if mask == "none" and positions > 1:  # causal: as many keys as positions
        states[1], states[2] = (state[:, :, :positions].detach().requires_grad_() for state in states[1:])
        length = positions
    shape = (2, 6 if mask == "per head" else 1, positions, length)
    bias = None if mask == "none" else torch.randn(shape, generator=generator, dtype=torch.float64)
    module = SimpleNamespace(
        head_maps=HeadMaps(heads),
        config=SimpleNamespace(stock=SimpleNamespace(_attn_implementation=implementation)),
        stock_module=modeling_bert.__name__,
        training=False,
        is_causal=True,
        modules=list,
    )
    found, _ = grouped_attention(module, *states, bias, scaling=0.5, dropout=0.0)
    query, key, value = (
        state[:, list(heads.stored_heads(role))]
        for state, role in zip(states, ("query", "key", "value"), strict=True)
    )
    scores = 0.5 * query @ key.transpose(2, 3)
    if bias is not None:
        scores = scores + bias
    elif positions > 1:
        scores = scores.masked_fill(torch.ones(positions, length).triu(1).bool(), -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((output * weights).sum(), states) for output in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


class _LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("variant", ["MQA", "GQA", "random GQA", "unequal", "GQKVA"])
@pytest.mark.parametrize("masked", [False, True])
def test_decoding_makes_no_copy_of_the_cache(variant: str, masked: bool) -> None:
    """Keys repeated for the heads that share them would cost the memory that grouping saves."""
    heads, positions = layout(variant, 6, 16), 512
    query, key, value = (
        torch.randn(2, count, length, 16)
        for count, length in (
            (heads.num_query_heads, 1),
            (heads.num_key_heads, positions),
            (heads.num_value_heads, positions),
        )
    )
    module = SimpleNamespace(
        head_maps=HeadMaps(heads),
        config=SimpleNamespace(stock=SimpleNamespace(_attn_implementation="sdpa")),
        stock_module=modeling_bert.__name__,
        training=False,
        is_causal=True,
        modules=list,
    )
    mask = torch.ones(2, 1, 1, positions, dtype=torch.bool) if masked else None
    with torch.inference_mode(), _LargestTensor() as largest:
        grouped_attention(module, query, key, value, mask, scaling=0.25, dropout=0.0)
    assert 0 < largest.numel < key.numel() / heads.num_key_heads
