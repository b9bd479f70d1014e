"""The form of a recipe: a YAML file of variables and steps."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gqkva_convert.checkpoint.yamlfile import read_yaml
from gqkva_convert.errors import RecipeError

# Variables that every recipe has: the folder that its results go to.
WORK = "work"
_NAME = r"^[a-z][a-z0-9_-]*$"


class Assumed(BaseModel):
    """Sizes of a model for a dry run that cannot read its headers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: int = Field(gt=0, description="Parameters of the model.")
    bytes: int = Field(gt=0, description="Bytes of its weight files.")


class Gpus(BaseModel):
    """The GPUs that a dry run assumes on a machine without any."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="A part of their name, such as H100.")
    count: int = Field(1, gt=0, description="How many.")


class Step(BaseModel):
    """One command with its arguments and options.

    In YAML a step is written as ``command: {option: value}``, with ``name`` and ``accelerate`` beside it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=_NAME, description="What the step is called; by default its command, numbered if repeated."
    )
    command: str = Field(description="A command of gqkva.")
    options: dict[str, Any] = Field(description="Its arguments and options, with underscores for hyphens.")
    accelerate: str | Annotated[int, Field(ge=1)] | None = Field(
        None, description="A configuration file for `accelerate launch`, or a number of processes."
    )
    repeats: str = Field("", description="The name of the step that this is one repetition of.")


class Repeated(BaseModel):
    """Steps that are repeated for all combinations of some values."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    values: dict[str, Any] = Field(
        alias="for",
        min_length=1,
        description="Values by name: a list, or a mapping from names to keys, written `${name.key}`.",
    )
    steps: tuple[Step | Repeated, ...] = Field(
        min_length=1, description="Commands, in order, as in a recipe."
    )


class Recipe(BaseModel):
    """A recipe.

    Variables are written as ``${name}`` in options; one that is the whole value keeps its type.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = Field(description="What it makes, in a sentence.")
    needs: str = Field(description="The machine and time it needs, and how that is known.")
    expect: str | None = Field(None, description="What comes out, and how that is known.")
    gpus: Gpus | None = Field(None, description="GPUs for the estimates of a dry run elsewhere.")
    variables: dict[str, Any] = Field(default_factory=dict, description="Values that steps share.")
    assume: dict[str, Assumed] = Field(
        default_factory=dict, description="Sizes of Hub models for a dry run without network, by id."
    )
    steps: tuple[Step | Repeated, ...] = Field(min_length=1, description="Commands, in order.")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name, with the nearest known one."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names) or 'none'}"
    return f"no {what} {name!r}; {remedy}"


def fault_of(error: ValidationError) -> str:
    """Return the place and message of the first fault."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"


def read_recipe(path: Path, commands: Iterable[str]) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: It cannot be read, or does not say what a recipe says; names the place.
    """
    data = read_yaml(path, RecipeError)
    if not isinstance(data, dict):
        raise RecipeError(f"{path} is no recipe: it holds no mapping with description, needs and steps")
    for key in data:
        if key not in Recipe.model_fields:
            raise RecipeError(f"{path}: {unknown('key', str(key), Recipe.model_fields)}")
    try:
        return Recipe(**{**data, "steps": _Reader(path, list(commands)).steps(data.get("steps"))})
    except ValidationError as error:
        first = error.errors()[0]
        parts: dict[str, type[BaseModel]] = {"gpus": Gpus, "assume": Assumed}
        part = parts.get(str(first["loc"][0]))
        if first["type"] == "extra_forbidden" and part is not None:
            near = unknown("key", str(first["loc"][-1]), part.model_fields)
            raise RecipeError(f"{path}: {first['loc'][0]}: {near}") from error
        raise RecipeError(f"{path}: {fault_of(error)}") from error


class _Reader:
    """Makes steps of ``command: options`` mappings; each gets a name of its own."""

    def __init__(self, path: Path, commands: list[str]) -> None:
        self.path = path
        self.commands = commands
        self.used: set[str] = set()
        self.commands_seen: Counter[str] = Counter()
        self.number = 0

    def steps(self, data: Any) -> list[Step | Repeated]:
        if not isinstance(data, list) or not data:
            raise RecipeError(f"{self.path}: steps are a list of commands, such as - convert: {{gkv: 8}}")
        found: list[Step | Repeated] = []
        for entry in data:
            if isinstance(entry, dict) and "for" in entry:
                found.append(self._repeated(entry))
            else:
                self.number += 1
                found.append(self._step({entry: {}} if isinstance(entry, str) else entry))
        return found

    def _repeated(self, entry: dict[str, Any]) -> Repeated:
        where = f"{self.path}: steps repeated behind step {self.number}"
        for key in entry:
            if key not in ("for", "steps"):
                raise RecipeError(f"{where}: {unknown('key', str(key), ('for', 'steps'))}")
        if not isinstance(entry["for"], dict) or not entry["for"]:
            raise RecipeError(f"{where}: for is a mapping, such as {{seed: [0, 1, 2]}}")
        return Repeated(**{"for": entry["for"]}, steps=tuple(self.steps(entry.get("steps"))))

    def _step(self, entry: Any) -> Step:
        where = f"{self.path}: step {self.number}"
        if not isinstance(entry, dict):
            raise RecipeError(f"{where}: a step is a command with its options, found {entry!r}")
        extra = {key: entry[key] for key in ("name", "accelerate") if key in entry}
        given = [str(key) for key in entry if key not in extra]
        for command in given:
            if command not in self.commands:
                beside = (*self.commands, "name", "accelerate", "for")
                raise RecipeError(f"{where}: {unknown('command', command, beside)}")
        if len(given) != 1:
            raise RecipeError(f"{where}: a step is one command, found {', '.join(given) or 'none'}")
        options = entry[given[0]] or {}
        if not isinstance(options, dict):
            raise RecipeError(f"{where}: the options of {given[0]} are a mapping, found {options!r}")
        name = str(extra.pop("name", None) or self._free_name(given[0]))
        if name in self.used:
            raise RecipeError(f"{where}: two steps are called {name!r}; names are for telling them apart")
        self.used.add(name)
        options = {str(key).replace("-", "_"): value for key, value in options.items()}
        try:
            return Step(name=name, command=given[0], options=options, **extra)
        except ValidationError as error:
            raise RecipeError(f"{where}: {fault_of(error)}") from error

    def _free_name(self, command: str) -> str:
        while True:
            self.commands_seen[command] += 1
            number = self.commands_seen[command]
            name = command if number == 1 else f"{command}-{number}"
            if name not in self.used:
                return name
