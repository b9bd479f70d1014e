"""Progress callbacks of long work; the command line draws bars with them."""

from __future__ import annotations

from collections.abc import Callable

# Called with how much was just done: bytes, batches or blocks.
Progress = Callable[[int], None]
# Begins a stage of work: its name and size, to what is called as it advances.
Stages = Callable[[str, int], Progress]


def no_progress(done: int) -> None:
    """Show nothing."""


def no_stages(name: str, total: int) -> Progress:
    """Show nothing."""
    return no_progress
