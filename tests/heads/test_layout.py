"""`HeadLayout`: what can be built, what it is called, and what JSON keeps of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqkva_convert.errors import LayoutError
from gqkva_convert.heads import ROLES, HeadLayout, divisors

properties = settings(max_examples=25, deadline=None)
head_dims = st.integers(1, 300)


@st.composite
def maps(draw: st.DrawFn, heads: int) -> tuple[int, ...]:
    """Any stored head for each attention head, numbered without gaps."""
    drawn = draw(st.lists(st.integers(0, heads - 1), min_size=heads, max_size=heads))
    numbers = {head: number for number, head in enumerate(draw(st.permutations(sorted(set(drawn)))))}
    return tuple(numbers[head] for head in drawn)


@st.composite
def layouts(draw: st.DrawFn) -> HeadLayout:
    """Any layout at all, named or not."""
    heads = draw(st.integers(1, 13))
    return HeadLayout(draw(maps(heads)), draw(maps(heads)), draw(maps(heads)), draw(head_dims))


@st.composite
def named_layouts(draw: st.DrawFn) -> HeadLayout:
    """Layouts the constructors make."""
    heads, head_dim = draw(st.integers(1, 48)), draw(head_dims)
    groups = draw(st.sampled_from(divisors(heads)))
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=9))
    return draw(
        st.sampled_from(
            [
                HeadLayout.mha(heads, head_dim),
                HeadLayout.gqa(heads, groups, head_dim),
                HeadLayout.gkva(heads, groups, head_dim),
                HeadLayout.gqkva(groups, heads // groups, head_dim),
                HeadLayout.unequal(sizes, head_dim),
            ]
        )
    )


@properties
@given(layout=st.one_of(layouts(), named_layouts()))
def test_a_layout_survives_a_json_file(layout: HeadLayout) -> None:
    """A plan is a file a person may edit; what is read back must be the layout that was planned."""
    assert HeadLayout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@properties
@given(layout=st.one_of(layouts(), named_layouts()))
def test_stored_heads_are_counted_per_role(layout: HeadLayout) -> None:
    """Tensor sizes follow from these counts."""
    counts = (layout.num_query_heads, layout.num_key_heads, layout.num_value_heads)
    assert counts == tuple(max(layout.stored_heads(role)) + 1 for role in ROLES)
    assert {len(layout.stored_heads(role)) for role in ROLES} == {layout.num_attention_heads}


@properties
@given(layout=st.one_of(layouts(), named_layouts()))
def test_stock_means_that_two_configuration_numbers_say_it_all(layout: HeadLayout) -> None:
    """A stock model repeats each key/value head for its neighbours; anything else would load and be wrong."""
    heads, stored = layout.num_attention_heads, layout.num_key_heads
    repeated = tuple(head * stored // heads for head in range(heads))
    by_hand = (
        heads % stored == 0
        and layout.query == tuple(range(heads))
        and layout.key == repeated
        and layout.value == repeated
    )
    assert layout.is_stock_gqa == by_hand
    assert ("num_key_value_heads" in layout.to_dict()) == by_hand


@properties
@given(heads=st.integers(1, 60), head_dim=head_dims, data=st.data())
def test_gqa_repeats_each_key_value_head_for_its_neighbours(
    heads: int, head_dim: int, data: st.DataObject
) -> None:
    """This is transformers' `repeat_kv`, on which every stock model relies."""
    stored = data.draw(st.sampled_from(divisors(heads)))
    layout = HeadLayout.gqa(heads, stored, head_dim)
    assert layout.key == layout.value == tuple(head for head in range(stored) for _ in range(heads // stored))
    assert layout.query == tuple(range(heads))
    assert layout.is_stock_gqa


@properties
@given(queries=st.integers(1, 9), keys=st.integers(1, 9), head_dim=head_dims)
def test_gqkva_pairs_every_query_with_every_key_once(queries: int, keys: int, head_dim: int) -> None:
    """G x K stored heads must give G * K different attention heads, or some head is computed twice."""
    layout = HeadLayout.gqkva(queries, keys, head_dim)
    pairs = list(zip(layout.query, layout.key, strict=True))
    assert pairs == [(query, key) for query in range(queries) for key in range(keys)]
    assert layout.value == layout.key


@properties
@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=10), head_dim=head_dims)
def test_unequal_groups_have_the_sizes_asked_for(sizes: list[int], head_dim: int) -> None:
    """The searched sizes are the result of a search over activations; they may not be rounded."""
    layout = HeadLayout.unequal(sizes, head_dim)
    assert [layout.key.count(group) for group in range(len(sizes))] == sizes
    assert list(layout.key) == sorted(layout.key)
    assert layout.num_query_heads == sum(sizes)
    assert layout.is_stock_gqa == (len(set(sizes)) == 1)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (HeadLayout.mha(6, 4), "MHA"),
        (HeadLayout.mha(1, 4), "MHA"),
        (HeadLayout.gqa(6, 6, 4), "MHA"),
        (HeadLayout.gqa(6, 1, 4), "MQA"),
        (HeadLayout.gqa(12, 4, 5), "GQA-4"),
        (HeadLayout.gkva(12, 3, 5), "GKVA-3"),
        (HeadLayout.gkva(10, 1, 5), "MKVA"),
        (HeadLayout.gqkva(2, 5, 3), "GQKVA-2.5"),
        (HeadLayout.gqkva(5, 2, 3), "GQKVA-5.2"),
        (HeadLayout.gqkva(1, 7, 3), "MKVA"),
        (HeadLayout.gqkva(7, 1, 3), "MQA"),
        (HeadLayout.unequal([3, 1, 2], 4), "unequal GQA-3"),
        (HeadLayout.unequal([2, 2, 2], 4), "GQA-3"),
        (HeadLayout((0, 1, 2, 3), (0, 1, 0, 1), (0, 1, 0, 1), 5), "GQA-2"),
        (HeadLayout((0, 1, 2), (0, 0, 1), (0, 1, 1), 4), "custom (3 query, 2 key, 2 value heads)"),
        (HeadLayout((0, 0, 1), (0, 1, 1), (0, 1, 1), 4), "custom (2 query, 2 key/value heads)"),
        (HeadLayout((0, 0, 1, 1), (0, 0, 1, 1), (0, 0, 1, 1), 3), "custom (2 query, 2 key/value heads)"),
    ],
)
def test_a_layout_is_called_by_its_name_in_the_papers(layout: HeadLayout, name: str) -> None:
    """Reports and model cards are read by people who know these words."""
    assert layout.name == name


@properties
@given(heads=st.integers(1, 40), groups=st.integers(-3, 50))
def test_uneven_groups_are_refused_with_the_choices(heads: int, groups: int) -> None:
    """Uneven neighbour groups cannot be stored; the message must save the reader the arithmetic."""
    for make, what in ((HeadLayout.gqa, "key/value"), (HeadLayout.gkva, "query")):
        if groups >= 1 and heads % groups == 0:
            assert make(heads, groups, 3).num_attention_heads == heads
        else:
            with pytest.raises(LayoutError) as refusal:
                make(heads, groups, 3)
            assert f"{heads} attention heads cannot share {groups} {what} heads evenly" in str(refusal.value)
            assert f"choose one of {divisors(heads)}" in str(refusal.value)


@properties
@given(number=st.integers(1, 500))
def test_divisors_are_all_that_divide(number: int) -> None:
    """Every refusal offers these as what would work."""
    assert divisors(number) == sorted(
        {part for part in range(1, number + 1) if number / part == number // part}
    )


@pytest.mark.parametrize(
    ("query", "key", "value", "head_dim", "message"),
    [
        ((0, 1, 2), (0, 1), (0, 1, 2), 4, "found 3, 2 and 3"),
        ((0, 1, 2), (0, 1, 1), (0,), 4, "found 3, 3 and 1"),
        ((), (), (), 4, "found 0 heads of 4 features"),
        ((0, 1), (0, 0), (0, 0), 0, "found 2 heads of 0 features"),
        ((0, 1), (0, 0), (0, 0), -5, "found 2 heads of -5 features"),
        ((0, 1, 2), (0, 2, 2), (0, 1, 1), 4, r"stored key heads .* without gaps, found \[0, 2\]"),
        ((0, 1, 2), (0, 1, 1), (1, 2, 2), 4, r"stored value heads .* found \[1, 2\]"),
        ((-1, 0, 1), (0, 1, 1), (0, 1, 1), 4, r"stored query heads .* found \[-1, 0, 1\]"),
    ],
)
def test_a_layout_that_cannot_exist_is_refused(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], head_dim: int, message: str
) -> None:
    """A gap would be a stored head that nothing reads, or one that is read and not there."""
    with pytest.raises(LayoutError, match=message):
        HeadLayout(query, key, value, head_dim)


@pytest.mark.parametrize("sizes", [[3, 0, 2], [3, -1]])
def test_an_empty_group_is_refused(sizes: list[int]) -> None:
    """A group of no heads would store a head that nothing reads."""
    with pytest.raises(LayoutError, match="every group needs at least one head, found sizes"):
        HeadLayout.unequal(sizes, 4)


def test_no_groups_at_all_are_refused() -> None:
    """Without heads there is no block to convert."""
    with pytest.raises(LayoutError, match="at least one head"):
        HeadLayout.unequal([], 4)


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        None,
        {"num_attention_heads": 6},
        {"num_attention_heads": 6, "num_key_value_heads": 3},
        {"num_attention_heads": "6", "num_key_value_heads": 3, "head_dim": 4},
        {"num_attention_heads": 6, "num_key_value_heads": None, "head_dim": 4},
        {"query": [0, 1], "key": [0, 1], "head_dim": 4},
        {"query": [0, 1], "key": [0, 1], "value": 5, "head_dim": 4},
        {"query": [0, 1], "key": [0, [1]], "value": [0, 1], "head_dim": 4},
        {"query": [0, 1], "key": [0, "x"], "value": [0, 1], "head_dim": 4},
        {"query": [0, 1], "key": [0, 1], "value": [0, 1], "head_dim": "4"},
        {"query": "01", "key": "01", "value": "01", "head_dim": 4},
    ],
)
def test_data_that_is_no_layout_is_refused(data: Any) -> None:
    """A plan file may have been edited by hand; a slip there is no crash of ours."""
    with pytest.raises(LayoutError):
        HeadLayout.from_dict(data)


def test_a_refused_file_is_quoted() -> None:
    """The reader must find the wrong entry among dozens of layers."""
    with pytest.raises(
        LayoutError, match=r"not a head layout: KeyError\('head_dim'\) in .*'num_attention_heads': 6"
    ):
        HeadLayout.from_dict({"num_attention_heads": 6, "num_key_value_heads": 3})


@pytest.mark.parametrize(
    "data",
    [
        {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4.5},
        {"num_attention_heads": 6, "num_key_value_heads": 3.0, "head_dim": 4},
        {"query": [0, 1.0], "key": [0, 1], "value": [0, 1], "head_dim": 4},
        {"query": [False, True], "key": [0, 1], "value": [0, 1], "head_dim": 4},
    ],
)
def test_numbers_that_are_not_whole_are_refused(data: dict[str, Any]) -> None:
    """Half a feature must be named here, not crash where rows are counted."""
    with pytest.raises(LayoutError):
        HeadLayout.from_dict(data)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), head_dims)
@properties
def test_parts_put_side_by_side_are_the_layout(
    parts: int, groups: int, size: int, queries: int, head_dim: int
) -> None:
    """Each process of tensor parallelism holds one run of every role's stored heads."""
    for layout in (
        HeadLayout.gqa(parts * groups * size, parts * groups, head_dim),
        HeadLayout.gkva(parts * queries * size, parts * queries, head_dim),
    ):
        part = layout.part(parts)
        assert part.num_attention_heads * parts == layout.num_attention_heads
        for role in ROLES:
            stored = part.stored_heads(role)
            count = len(set(stored))
            joined = [head + run * count for run in range(parts) for head in stored]
            assert tuple(joined) == layout.stored_heads(role)


@pytest.mark.parametrize(
    "layout",
    [
        HeadLayout.gqa(6, 3, 4),
        HeadLayout.gqa(6, 1, 4),
        HeadLayout.gqkva(2, 4, 4),
        HeadLayout.unequal([1, 3], 4),  # two heads of keys, but not of two heads each
        HeadLayout.mha(5, 4),
        HeadLayout((0, 1, 2, 3), (0, 0, 1, 1), (0, 1, 0, 1), 4),
    ],
)
def test_layouts_without_parts_of_their_own_are_refused(layout: HeadLayout) -> None:
    """A process would read another's heads."""
    with pytest.raises(LayoutError, match="cannot be split into 2 parts"):
        layout.part(2)
