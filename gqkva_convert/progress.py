"""Progress callbacks of long work; the command line draws bars with them."""

from __future__ import annotations

from collections.abc import Callable

# Called with how much was just done: bytes, batches or blocks.
Progress = Callable[[int], None]
# Begins a stage of work with a name and size; returns a function to call as it advances.
Stages = Callable[[str, int], Progress]


class Bytes(int):
    """The size of a stage that counts bytes."""


class Note(str):
    """What a user should know, in place of a stage's name."""

    __slots__ = ()


def note(stages: Stages, text: str) -> None:
    """Tell the user something while work goes on."""
    stages(Note(text), 0)


def no_progress(done: int) -> None:
    """Show nothing."""


def no_stages(name: str, total: int) -> Progress:
    """Show nothing."""
    return no_progress


def byte_stage(stages: Stages, name: str, total: int, progress: Progress | None) -> Progress:
    """Begin a stage that counts bytes; what advances it is told to ``progress``, too."""
    advance = stages(name, Bytes(total))
    if progress is None:
        return advance

    def both(count: int) -> None:
        advance(count)
        progress(count)

    return both
