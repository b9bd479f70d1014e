"""`Variant`: what --gq and --gkv ask for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gqkva_convert.errors import LayoutError, UsageError
from gqkva_convert.heads import HeadLayout, Variant, divisors

properties = settings(max_examples=25, deadline=None)


@properties
@given(heads=st.integers(1, 40), head_dim=st.integers(1, 99), gkv=st.integers(1, 44))
def test_gkv_alone_is_grouped_query_attention(heads: int, head_dim: int, gkv: int) -> None:
    """The commonest conversion must give what stock transformers reads, or say which numbers would."""
    source = HeadLayout.mha(heads, head_dim)
    if heads % gkv == 0:
        assert Variant(None, gkv).layout(source) == HeadLayout.gqa(heads, gkv, head_dim)
    else:
        with pytest.raises(LayoutError) as refusal:
            Variant(None, gkv).layout(source)
        assert str(refusal.value) == (
            f"--gkv {gkv} does not divide {heads} key/value heads; choose one of {divisors(heads)}"
        )


@properties
@given(stored=st.integers(1, 12), size=st.integers(2, 5), gkv=st.integers(1, 60))
def test_a_grouped_source_can_only_be_grouped_further(stored: int, size: int, gkv: int) -> None:
    """Heads already shared cannot be separated again; the message says who shares them."""
    source = HeadLayout.gqa(stored * size, stored, 7)
    if stored % gkv == 0:
        assert Variant(None, gkv).layout(source) == HeadLayout.gqa(stored * size, gkv, 7)
    else:
        with pytest.raises(LayoutError) as refusal:
            Variant(None, gkv).layout(source)
        assert f"{stored} key/value heads (shared by {stored * size} attention heads)" in str(refusal.value)
        assert str(refusal.value).endswith(f"choose one of {divisors(stored)}")


@properties
@given(heads=st.integers(1, 40), gq=st.integers(1, 44))
def test_gq_alone_shares_queries(heads: int, gq: int) -> None:
    """MKVA and GKVA keep every key and value and merge only queries."""
    source = HeadLayout.mha(heads, 5)
    if heads % gq == 0:
        layout = Variant(gq, None).layout(source)
        assert layout == HeadLayout.gkva(heads, gq, 5)
        assert layout.num_key_heads == layout.num_value_heads == heads
    else:
        with pytest.raises(LayoutError) as refusal:
            Variant(gq, None).layout(source)
        assert f"choose one of {divisors(heads)}" in str(refusal.value)


@properties
@given(heads=st.integers(1, 36), gq=st.integers(1, 36), gkv=st.integers(1, 36))
def test_both_numbers_must_multiply_to_the_heads(heads: int, gq: int, gkv: int) -> None:
    """GQKVA computes gq * gkv attention heads; any other count changes the output projection."""
    source = HeadLayout.mha(heads, 3)
    if gq * gkv == heads:
        assert Variant(gq, gkv).layout(source) == HeadLayout.gqkva(gq, gkv, 3)
    else:
        with pytest.raises(LayoutError) as refusal:
            Variant(gq, gkv).layout(source)
        offered = str(refusal.value).partition("pairs that work are ")[2].split(", ")
        assert [tuple(map(int, pair.split(" x "))) for pair in offered] == [
            (part, heads // part) for part in divisors(heads)
        ]
        assert f"gives {gq * gkv} attention heads, the model has {heads}" in str(refusal.value)


@properties
@given(heads=st.integers(2, 30), data=st.data())
def test_every_offered_number_works(heads: int, data: st.DataObject) -> None:
    """A refusal that offers a number which is refused in turn would waste the reader's evening."""
    source = HeadLayout.mha(heads, 3)
    number = data.draw(st.sampled_from(divisors(heads)))
    for variant in (Variant(None, number), Variant(number, None), Variant(number, heads // number)):
        assert variant.layout(source).num_attention_heads == heads


@pytest.mark.parametrize("variant", [Variant(3, None), Variant(3, 4), Variant(1, None)])
def test_queries_of_a_grouped_source_are_not_merged(variant: Variant) -> None:
    """The papers define query sharing for multi-head sources only."""
    with pytest.raises(
        LayoutError, match="this one has 4 key/value heads for 12 attention heads; use --gkv alone"
    ):
        variant.layout(HeadLayout.gqa(12, 4, 5))


def test_asking_for_nothing_is_refused() -> None:
    """A conversion that changes nothing is a copy, and surely a forgotten option."""
    with pytest.raises(UsageError, match="give --gkv, --gq or both"):
        Variant(None, None)


@pytest.mark.parametrize(
    ("gq", "gkv", "message"),
    [(None, 0, "--gkv 0"), (0, None, "--gq 0"), (2, -3, "--gkv -3"), (-2, 3, "--gq -2")],
)
def test_fewer_than_one_head_is_refused(gq: int | None, gkv: int | None, message: str) -> None:
    """The option at fault is named, since two were given."""
    with pytest.raises(LayoutError, match=f"{message}: a model needs at least 1 head"):
        Variant(gq, gkv)


@pytest.mark.parametrize(
    ("gq", "gkv", "slug"),
    [
        (None, 8, "gqa-8"),
        (None, 1, "mqa"),
        (2, None, "gkva-2"),
        (1, None, "mkva"),
        (2, 4, "gqkva-2.4"),
        (1, 8, "gqkva-1.8"),
        (8, 1, "gqkva-8.1"),
    ],
)
def test_the_folder_is_named_after_the_variant(gq: int | None, gkv: int | None, slug: str) -> None:
    """Several conversions of one model lie side by side and must not collide."""
    assert Variant(gq, gkv).slug == slug


@properties
@given(heads=st.integers(1, 24), data=st.data())
def test_different_variants_have_different_folders(heads: int, data: st.DataObject) -> None:
    """One conversion must never replace another by having the same name."""
    numbers = st.one_of(st.none(), st.integers(1, heads))
    pairs = st.tuples(numbers, numbers).filter(lambda pair: pair != (None, None))
    one, other = data.draw(pairs), data.draw(pairs)
    assert (Variant(*one).slug == Variant(*other).slug) == (one == other)
