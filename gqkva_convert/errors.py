"""Every error the command line reports as one line, each with its own exit code.

A message says what was found, where, and what to do next. Anything that is not a `GqkvaError` is a
bug of ours and keeps its traceback.
"""

from __future__ import annotations


class GqkvaError(Exception):
    """Base of every error that is reported without a traceback."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """What somebody else's error says, in one line; its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


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
    """A model that the Hugging Face Hub does not give us."""

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


class SpeedError(GqkvaError):
    """A measurement that cannot be: its settings, its device, or a context that the model does not have."""

    exit_code = 14


class Terminated(KeyboardInterrupt):
    """The process was asked to stop (SIGTERM); handled as Ctrl-C is, with its own exit code."""

    exit_code = 143
