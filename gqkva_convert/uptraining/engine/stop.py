"""Stopping a run from outside: the step is finished and a checkpoint written, the second time at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gqkva_convert.errors import Terminated
from gqkva_convert.uptraining.engine.processes import summed


class StopRequest:
    """Notes that any process of a run was asked to stop, by SIGINT or SIGTERM.

    Args:
        accelerator: Accelerate's.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self._signal: int | None = None

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Note the first signal, and end the run at once on the second, within a ``with`` block."""
        before = {}

        def ask(number: int, frame: FrameType | None) -> None:
            if self._signal is not None:
                raise _ending(number)
            self._signal = number

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, ask)
        except ValueError:  # not the main thread: whoever runs us handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self) -> bool:
        """Return whether any process was asked; all must call this at the same place."""
        if self.accelerator.num_processes == 1:
            return self._signal is not None
        asked = summed(self.accelerator, [float(self._signal or 0)])[0] > 0
        if asked and self._signal is None:
            self._signal = signal.SIGTERM
        return asked

    def raise_(self) -> None:
        """End the run as the signal asked.

        Raises:
            Terminated: By SIGTERM, here or in another process.
            KeyboardInterrupt: By SIGINT.
        """
        raise _ending(self._signal)


def _ending(number: int | None) -> BaseException:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
