"""What other libraries say while they work, which tells our user nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_transformers() -> None:
    """Leave out transformers' notes and its bars for weights that are read."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextmanager
def quiet(library: str, level: int = logging.ERROR) -> Iterator[None]:
    """Let a library's log say what is at least of a level, and no more, for a while."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
