"""Which stored heads of one attention block become one, as maps of heads alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gqkva_convert.heads.layout import HeadLayout


def merged_groups(
    order: Sequence[int | None], source: Sequence[int], target: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Return, for each stored head of the result, the source's stored heads that it is merged from.

    Args:
        order: Source attention head that each attention head of the result was; None for an added one.
        source: Stored head of each attention head of the source, for one role.
        target: Stored head of each attention head of the result, for the same role.

    Returns:
        A group for each stored head; one that only added heads read repeats the source's first.
    """
    groups: list[dict[int, None]] = [{} for _ in set(target)]
    for head, stored in zip(order, target, strict=True):
        if head is not None:
            groups[stored][source[head]] = None
    return tuple(tuple(group) or (0,) for group in groups)


@dataclass(frozen=True)
class Regrouping:
    """The heads of one block before and after merging.

    Attributes:
        source: Layout of the source.
        target: Layout of the result.
        order: Source attention head that each attention head of the result was.
    """

    source: HeadLayout
    target: HeadLayout
    order: tuple[int, ...]

    def groups(self, role: str) -> tuple[tuple[int, ...], ...]:
        """Return the source's stored heads behind each stored head of a role; see `merged_groups`."""
        return merged_groups(self.order, self.source.stored_heads(role), self.target.stored_heads(role))

    def members(self, role: str) -> list[tuple[int, int]]:
        """Return the stored head that each attention head of the result reads, and its place in the group."""
        groups, source = self.groups(role), self.source.stored_heads(role)
        stored = self.target.stored_heads(role)
        return [(one, groups[one].index(source[head])) for head, one in zip(self.order, stored, strict=True)]
