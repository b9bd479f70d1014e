"""Settings of a measurement, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gqkva_convert.checkpoint.dtypes import unknown_dtype
from gqkva_convert.errors import DataError, EvaluationError

DTYPES = ("auto", "float32", "bfloat16", "float16")
DOCUMENTS = ("records", "joined")


@dataclass(frozen=True)
class EvaluationSettings:
    """The data, tasks and settings that a model is measured with: arguments of `evaluate`, checked once."""

    data: str | None = None
    split: str | None = None
    tasks: tuple[str, ...] = ()
    samples: int | None = None
    length: int | None = None
    stride: int | None = None
    documents: str | None = None
    column: tuple[str, ...] = ()
    assistant_only_loss: bool = False
    batch_size: int | None = None
    max_new_tokens: int = 128
    num_fewshot: int | None = None
    seed: int = 0
    dtype: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.data is None and not self.tasks:
            raise EvaluationError("nothing to measure on; give --data, --tasks or both")
        goes_with = {
            "--data": ("split", "stride", "documents", "column", "assistant_only_loss"),
            "--tasks": ("num_fewshot",),
        }
        for option, names in goes_with.items():
            given = [name for name in names if getattr(self, name) not in (None, (), False)]
            if given and not getattr(self, option.removeprefix("--")):
                raise EvaluationError(f"--{given[0].replace('_', '-')} goes with {option}; leave it out")
        for name, least in (("samples", 1), ("length", 2), ("stride", 1), ("batch_size", 1)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise EvaluationError(f"--{name.replace('_', '-')} {number}: at least {least}")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise EvaluationError(f"--num-fewshot {self.num_fewshot}: at least 0")
        if self.max_new_tokens < 1:
            raise EvaluationError(f"--max-new-tokens {self.max_new_tokens}: at least 1")
        if not 0 <= self.seed < 2**63:
            raise EvaluationError(f"--seed {self.seed}: from 0 to {2**63 - 1}")
        if self.dtype not in (None, *DTYPES):
            raise EvaluationError(unknown_dtype(self.dtype, DTYPES, " to measure in"))
        if self.documents not in (None, *DOCUMENTS):
            raise DataError(f"--documents {self.documents!r}: choose {' or '.join(DOCUMENTS)}")


def choose_settings(settings: EvaluationSettings | None, arguments: Mapping[str, Any]) -> EvaluationSettings:
    """Return settings that were given whole, or those among a public function's arguments.

    Raises:
        EvaluationError: Both were given, or a value cannot be.
    """
    known = [field for field in fields(EvaluationSettings) if field.name in arguments]
    given = {field.name: arguments[field.name] for field in known if arguments[field.name] != field.default}
    if settings is not None:
        if given:
            wrong = next(iter(given)).replace("_", "-")
            raise EvaluationError(f"settings say everything themselves; leave out --{wrong}")
        return settings
    tasks = given.pop("tasks", ())
    names = tasks.split(",") if isinstance(tasks, str) else tasks
    if "data" in given:
        given["data"] = str(given["data"])
    if "column" in given:
        given["column"] = tuple(given["column"])
    return EvaluationSettings(**given, tasks=tuple(name.strip() for name in names if name.strip()))
