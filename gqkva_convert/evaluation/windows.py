"""Texts as windows that a causal language model reads: each token is predicted once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Tokens that a model reads at once.

    Attributes:
        inputs: Token ids.
        targets: Token ids that the last ``len(targets)`` positions predict.
        document: Number of the text it is cut from.
        counted: Which targets are measured; None for all.
    """

    inputs: Sequence[int]
    targets: Sequence[int]
    document: int = 0
    counted: Sequence[bool] | None = None

    @property
    def answers(self) -> int:
        """Count the targets that are measured."""
        return len(self.targets) if self.counted is None else sum(self.counted)


def rolling_windows(
    tokens: Sequence[int],
    prefix: int | None,
    length: int,
    stride: int,
    document: int = 0,
    counted: Sequence[bool] | None = None,
) -> Iterator[Window]:
    """Cut a text into windows, in the way of lm-evaluation-harness's rolling log-likelihood.

    Args:
        tokens: The text.
        prefix: Token before the first; None where the model has none, and the first token is
            then not predicted.
        length: Most tokens read at once.
        stride: Tokens predicted by each window but the first, which predicts as many as it reads. At most
            ``length``; the others see ``length - stride + 1`` tokens before the first that they predict.
        document: Number of the text.
        counted: Which tokens are measured; None for all.

    Yields:
        Windows whose targets, one after the other, are the text.
    """
    stream = [*([] if prefix is None else [prefix]), *tokens]
    added = len(stream) - len(tokens)
    done = 1
    while done < len(stream):
        predicted = min(length if done == 1 else stride, len(stream) - done)
        end = done + predicted
        start = max(0, end - 1 - length)
        measured = None if counted is None else counted[done - added : end - added]
        yield Window(stream[start : end - 1], stream[done:end], document, measured)
        done = end
