"""Steps as command lines: a step's options are those of its command, checked before anything runs."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import Any

from gqkva_convert.errors import RecipeError
from gqkva_convert.options import Option, find_option, keywords, options_of
from gqkva_convert.recipes.facts import FACTS, CommandFacts
from gqkva_convert.recipes.schema import Step, unknown

# Options that a recipe decides by itself, and what replaces them.
RESERVED = {
    "as_json": "give --json to gqkva run",
    "overwrite": "a recipe replaces what it made itself",
    "resume": "a recipe resumes by itself",
}


@dataclass(frozen=True)
class CommandLine:
    """A step as it is called."""

    step: Step
    facts: CommandFacts
    options: tuple[Option, ...]

    def has(self, name: str) -> bool:
        """Return whether the command has an option."""
        return any(option.name == name for option in self.options)

    def with_options(self, **changes: Any) -> CommandLine:
        """Return the command line with other values of some options."""
        step = self.step.model_copy(update={"options": self.step.options | changes})
        return CommandLine(step, self.facts, self.options)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the text after ``gqkva COMMAND``: arguments, then options."""
        placed: list[str] = []
        named: list[str] = []
        for option in self.options:
            value = self.step.options.get(option.name)
            if value is None:
                continue
            if option.is_argument:
                placed += _texts(option, value)
            elif option.kind is bool:
                named += [option.flag] if value else [f"--no-{option.flag[2:]}"] * bool(option.default)
            else:
                named += [part for text in _texts(option, value) for part in (option.flag, text)]
        return (*placed, *named)

    def __str__(self) -> str:
        line = shlex.join((self.step.command, *self.arguments))
        if self.step.accelerate is None:
            return f"gqkva {line}"
        return shlex.join(["accelerate", *self._launcher()]) + f" -m gqkva_convert {line}"

    def _launcher(self) -> list[str]:
        wanted = self.step.accelerate
        return ["launch", "--num_processes" if isinstance(wanted, int) else "--config_file", str(wanted)]

    def launched(self) -> list[str]:
        """Return the arguments of a new process that runs it under `accelerate launch`."""
        module = ["-m", "accelerate.commands.accelerate_cli"]
        command = ["-m", "gqkva_convert", self.step.command, *self.arguments]
        return [sys.executable, *module, *self._launcher(), *command]

    def given(self) -> dict[str, Any]:
        """Return the values of the options that are given, read as the command line reads them.

        Raises:
            RecipeError: A value is not of its option's kind.
        """
        return {
            option.name: _read(self.step.name, option, self.step.options[option.name])
            for option in self.options
            if self.step.options.get(option.name) is not None
        }

    def values(self) -> dict[str, Any]:
        """Return the values of all options, with defaults for those that are not given."""
        return {option.name: {} if option.takes == "pairs" else option.default for option in self.options} | (
            self.given()
        )

    def keywords(self) -> dict[str, Any]:
        """Return what to call the command's function with."""
        return keywords(self.options, self.given())


def command_line(step: Step) -> CommandLine:
    """Return a step as a command line.

    Raises:
        RecipeError: An option does not exist, or its value is not of its kind.
    """
    facts = FACTS[step.command]
    options = options_of(facts.function)
    given: dict[str, Any] = {}
    for name, value in step.options.items():
        if name in RESERVED:
            raise RecipeError(f"step {step.name}: {name} is not set in recipes; {RESERVED[name]}")
        found = find_option(options, name)
        if found is None:
            known = [option.name for option in options if option.name not in RESERVED]
            raise RecipeError(f"step {step.name}: {step.command} has {unknown('option', name, known)}")
        given[found.name] = value
    for option in options:
        if option.is_required and given.get(option.name) is None:
            raise RecipeError(f"step {step.name}: {step.command} needs {option.name}")
    line = CommandLine(step.model_copy(update={"options": given}), facts, options)
    line.given()
    return line


def _texts(option: Option, value: Any) -> list[str]:
    """Return an option's value as the command line's texts."""
    if isinstance(value, dict):
        value = [f"{key}={part}" for key, part in value.items()]
    if isinstance(value, list):
        return [str(part) for part in value] if option.is_repeated else [",".join(map(str, value))]
    return [str(value)]


def _read(step: str, option: Option, value: Any) -> Any:
    if (option.kind is bool) != isinstance(value, bool):
        wanted = "true or false" if option.kind is bool else "a value"
        raise RecipeError(f"step {step}: {option.flag} {value}: give {wanted}")
    if option.kind is bool:
        return value
    try:
        return option.read(_texts(option, value))
    except ValueError as error:
        raise RecipeError(f"step {step}: {error}") from error
