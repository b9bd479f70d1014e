"""Settings of a speed measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gqkva_convert.errors import EvaluationError

DTYPES = ("bfloat16", "float16", "float32")
CACHES = ("static", "dynamic")


def _counts(option: str, given: str | Sequence[int]) -> tuple[int, ...]:
    """Return numbers, or those of a text with commas between them.

    Raises:
        EvaluationError: The text is of something else.
    """
    if not isinstance(given, str):
        return tuple(given)
    try:
        return tuple(int(part) for part in given.split(","))
    except ValueError as error:
        raise EvaluationError(
            f"{option} {given}: give whole numbers with commas between them, as 1,16"
        ) from error


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a speed measurement: arguments of `bench`, checked once.

    Raises:
        EvaluationError: A value that cannot be.
    """

    context: tuple[int, ...] | None = None
    batch: tuple[int, ...] = (1, 16)
    new_tokens: int = 32
    dtype: str = "bfloat16"
    device: str = "auto"
    attn_implementation: str = "sdpa"
    rounds: int = 5
    cache: str = "static"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, counts in (("context", self.context), ("batch", self.batch)):
            if counts is not None and (not counts or min(counts) < 1 or len(set(counts)) < len(counts)):
                raise EvaluationError(
                    f"--{name} {','.join(map(str, counts))}: give different numbers of at least 1"
                )
        for name in ("new_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise EvaluationError(f"--{name.replace('_', '-')} {getattr(self, name)}: give at least 1")
        if not 0 <= self.seed < 2**63:
            raise EvaluationError(f"--seed {self.seed}: from 0 to {2**63 - 1}")
        for name, value, choices in (("dtype", self.dtype, DTYPES), ("cache", self.cache, CACHES)):
            if value not in choices:
                raise EvaluationError(f"--{name} {value}: choose one of {', '.join(choices)}")


def settings_of(arguments: Mapping[str, Any]) -> BenchSettings:
    """Return the settings among the arguments of `bench`.

    Raises:
        EvaluationError: A value cannot be.
    """
    given = {field.name: arguments[field.name] for field in fields(BenchSettings) if field.name in arguments}
    for name in ("context", "batch"):
        if given.get(name) is not None:
            given[name] = _counts(f"--{name}", given[name])
    return BenchSettings(**given)
