"""Which stored head each attention head reads: one map for the converter and for the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gqkva_convert.errors import LayoutError

ROLES = ("query", "key", "value")


@dataclass(frozen=True)
class HeadLayout:
    """Which stored query, key and value head each attention head reads, for one attention block.

    One primitive covers MHA, MQA, GQA (Ainslie et al., 2023, arXiv 2305.13245), unequal groups
    (Chen et al., 2024, arXiv 2406.14963) and MKVA, GKVA, GQKVA (Javadi et al., 2023, arXiv 2311.03426).

    Attributes:
        query: Stored query head of each attention head, numbered from 0 without gaps.
        key: Stored key head of each attention head, as long as ``query``.
        value: Stored value head of each attention head, as long as ``query``.
        head_dim: Features per head. Never derived from ``hidden_size``: several families set it freely.
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    head_dim: int

    def __post_init__(self) -> None:
        if not len(self.query) == len(self.key) == len(self.value):
            raise LayoutError(
                f"a layout needs one query, key and value entry per attention head, "
                f"found {len(self.query)}, {len(self.key)} and {len(self.value)}"
            )
        numbers = (*self.query, *self.key, *self.value, self.head_dim)
        if any(type(number) is not int for number in numbers):
            raise LayoutError(f"a layout is made of whole numbers, found {numbers!r}")
        if not self.query or self.head_dim < 1:
            raise LayoutError(
                f"a layout needs at least one head and one feature, "
                f"found {len(self.query)} heads of {self.head_dim} features"
            )
        for role in ROLES:
            used = set(self.stored_heads(role))
            if used != set(range(len(used))):
                raise LayoutError(
                    f"stored {role} heads are numbered from 0 without gaps, found {sorted(used)}"
                )

    @classmethod
    def mha(cls, num_attention_heads: int, head_dim: int) -> HeadLayout:
        """Every attention head has its own query, key and value."""
        heads = tuple(range(num_attention_heads))
        return cls(heads, heads, heads, head_dim)

    @classmethod
    def gqa(cls, num_attention_heads: int, num_key_value_heads: int, head_dim: int) -> HeadLayout:
        """Neighbouring attention heads share one key/value head; MQA when there is only one."""
        size = _group_size(num_attention_heads, num_key_value_heads, "key/value")
        heads = range(num_attention_heads)
        shared = tuple(head // size for head in heads)
        return cls(tuple(heads), shared, shared, head_dim)

    @classmethod
    def gkva(cls, num_attention_heads: int, num_query_heads: int, head_dim: int) -> HeadLayout:
        """Neighbouring attention heads share one query head; MKVA when there is only one."""
        size = _group_size(num_attention_heads, num_query_heads, "query")
        heads = tuple(range(num_attention_heads))
        return cls(tuple(head // size for head in heads), heads, heads, head_dim)

    @classmethod
    def gqkva(cls, num_query_heads: int, num_key_value_heads: int, head_dim: int) -> HeadLayout:
        """Every stored query head meets every stored key/value head once, query-major."""
        heads = range(num_query_heads * num_key_value_heads)
        shared = tuple(head % num_key_value_heads for head in heads)
        return cls(tuple(head // num_key_value_heads for head in heads), shared, shared, head_dim)

    @classmethod
    def unequal(cls, group_sizes: Sequence[int], head_dim: int) -> HeadLayout:
        """Neighbouring attention heads share key/value heads in groups of the sizes given."""
        if any(size < 1 for size in group_sizes):
            raise LayoutError(f"every group needs at least one head, found sizes {list(group_sizes)}")
        shared = tuple(group for group, size in enumerate(group_sizes) for _ in range(size))
        return cls(tuple(range(len(shared))), shared, shared, head_dim)

    @property
    def num_attention_heads(self) -> int:
        return len(self.query)

    @property
    def num_query_heads(self) -> int:
        return len(set(self.query))

    @property
    def num_key_heads(self) -> int:
        return len(set(self.key))

    @property
    def num_value_heads(self) -> int:
        return len(set(self.value))

    def stored_heads(self, role: str) -> tuple[int, ...]:
        """Stored head of each attention head for ``role``: ``query``, ``key`` or ``value``."""
        heads: tuple[int, ...] = getattr(self, role)
        return heads

    @property
    def is_stock_gqa(self) -> bool:
        """Whether ``num_attention_heads`` and ``num_key_value_heads`` alone describe this layout."""
        heads, stored = self.num_attention_heads, self.num_key_heads
        return heads % stored == 0 and self == HeadLayout.gqa(heads, stored, self.head_dim)

    @property
    def name(self) -> str:
        """The variant's name, such as ``GQA-8`` or ``GQKVA-2.4``."""
        heads, queries, keys = self.num_attention_heads, self.num_query_heads, self.num_key_heads
        if self.key != self.value:
            return f"custom ({queries} query, {keys} key, {self.num_value_heads} value heads)"
        if queries == heads:
            if keys == heads:
                return "MHA"
            if keys == 1:
                return "MQA"
            sizes = {self.key.count(head) for head in range(keys)}
            return f"GQA-{keys}" if len(sizes) == 1 else f"unequal GQA-{keys}"
        if keys == heads:
            sizes = {self.query.count(head) for head in range(queries)}
            unequal = "" if len(sizes) == 1 else "unequal "
            return "MKVA" if queries == 1 else f"{unequal}GKVA-{queries}"
        if len(set(zip(self.query, self.key, strict=True))) == heads == queries * keys:
            return f"GQKVA-{queries}.{keys}"
        return f"custom ({queries} query, {keys} key/value heads)"

    def part(self, parts: int) -> HeadLayout:
        """The layout of one of ``parts`` equal runs of attention heads, which must all be alike.

        Args:
            parts: How many runs; each gets as large a run of the stored heads of every role.

        Raises:
            LayoutError: A run reads stored heads of another, or the numbers do not divide.
        """
        heads = self.num_attention_heads
        found: list[tuple[int, ...]] = []
        for role in ROLES:
            stored = self.stored_heads(role)
            count = len(set(stored))
            runs = {
                tuple(
                    head - run * (count // parts) for head in stored[run * heads // parts :][: heads // parts]
                )
                for run in range(parts)
            }
            if heads % parts or count % parts or len(runs) > 1:
                raise LayoutError(
                    f"{self.name} cannot be split into {parts} parts: {heads} attention heads read {count} "
                    f"{role} heads, and each part would have to read its own, as many and in the same order"
                )
            found += runs
        query, key, value = found
        return HeadLayout(query, key, value, self.head_dim)

    def to_dict(self) -> dict[str, Any]:
        """The layout as JSON data, in configuration words where they suffice; `from_dict` reads it back."""
        if self.is_stock_gqa:
            return {
                "num_attention_heads": self.num_attention_heads,
                "num_key_value_heads": self.num_key_heads,
                "head_dim": self.head_dim,
            }
        maps = {role: list(self.stored_heads(role)) for role in ROLES}
        return {**maps, "head_dim": self.head_dim}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HeadLayout:
        """Read what `to_dict` wrote.

        Raises:
            LayoutError: A field is missing or the maps do not fit each other.
        """
        if not isinstance(data, dict):
            raise LayoutError(f"not a head layout: {data!r:.80}")
        try:
            if "num_attention_heads" in data:
                numbers = data["num_attention_heads"], data["num_key_value_heads"], data["head_dim"]
                if any(type(number) is not int for number in numbers):
                    raise LayoutError(f"a layout is made of whole numbers, found {data!r}")
                return cls.gqa(*numbers)
            query, key, value = (tuple(data[role]) for role in ROLES)
            return cls(query, key, value, data["head_dim"])
        except (KeyError, TypeError, ValueError) as error:
            raise LayoutError(f"not a head layout: {error!r} in {data!r}") from error


def _group_size(num_attention_heads: int, groups: int, what: str) -> int:
    if groups < 1 or num_attention_heads % groups:
        raise LayoutError(
            f"{num_attention_heads} attention heads cannot share {groups} {what} heads evenly; "
            f"choose one of {divisors(num_attention_heads)}"
        )
    return num_attention_heads // groups


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
