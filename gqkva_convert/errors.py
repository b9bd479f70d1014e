"""Every error the command line reports as one line, each kind with its own exit code.

A message says what was found, where, and what to do next. Anything that is not a `GqkvaError` is a
bug of ours and keeps its traceback.
"""

from __future__ import annotations

import re
from typing import TypeVar

Kind = TypeVar("Kind", bound="GqkvaError")

# The words of CUDA, of its driver, and of the CPU allocator on Linux and on Windows.
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


class GqkvaError(Exception):
    """Base of every error that is reported without a traceback."""

    exit_code = 1


def placed(error: Kind, *place: str | int) -> Kind:
    """Note the keys and numbers that lead to the part of a file that is wrong; `place_of` returns them."""
    error.__dict__["place"] = place  # the classes themselves are copied into modelling files
    return error


def place_of(error: GqkvaError) -> tuple[str | int, ...]:
    """Return where in a file the fault is, as far as it was noted."""
    place: tuple[str | int, ...] = error.__dict__.get("place", ())
    return place


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, or its class name if it has no message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python or PyTorch says that memory has run out.

    PyTorch's CPU allocator and the CUDA driver raise a plain RuntimeError. Kept by hand: accelerate's
    ``should_reduce_batch_size`` knows neither the driver's nor Windows's words, and counts other errors in.
    """
    is_by_words = isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    return is_by_words or isinstance(error, MemoryError)


class UsageError(GqkvaError):
    """Options, settings or a plan that contradict each other, or a value that an option cannot take."""

    exit_code = 2


class LayoutError(GqkvaError):
    """A head count or grouping that cannot exist."""

    exit_code = 2


class CheckpointError(GqkvaError):
    """A folder or file that is not a complete, well-formed checkpoint."""

    exit_code = 3


class FamilyError(GqkvaError):
    """A model family, tensor or configuration key that the family tables do not know."""

    exit_code = 4


class NotExpressibleError(GqkvaError):
    """A result that no stock architecture can hold."""

    exit_code = 5


class WeightError(GqkvaError):
    """Weights that cannot be merged: quantised, not finite, or out of the range of the new dtype."""

    exit_code = 6


class OutputError(GqkvaError):
    """An output that cannot be written: it exists, is in use, is read-only, or does not fit."""

    exit_code = 7


class HubError(GqkvaError):
    """A model that the Hugging Face Hub does not give us, or one that it does not or should not get."""

    exit_code = 8


class VerificationError(GqkvaError):
    """An output that is not what its plan says."""

    exit_code = 9


class DemoError(GqkvaError):
    """The demo cannot run in this installation."""

    exit_code = 10


class DataError(GqkvaError):
    """Data that cannot be used: not found, not readable, too little, or of another kind."""

    exit_code = 11


class TrainingError(GqkvaError):
    """A training run that cannot be: its settings, its teacher, its model, or a loss that is not finite."""

    exit_code = 12


class EvaluationError(GqkvaError):
    """A measurement that cannot be made: of this model, with this other one, or on this machine."""

    exit_code = 13


class RecipeError(GqkvaError):
    """A recipe that cannot be run: not YAML, no such step or setting, or steps that do not fit."""

    exit_code = 14


class OtherProcessError(GqkvaError):
    """A process beside the main one of a distributed run that has done its share; the main one continues."""

    exit_code = 0


class Terminated(KeyboardInterrupt):
    """The process was asked to stop (SIGTERM); handled as Ctrl-C is, with its own exit code."""

    exit_code = 143
