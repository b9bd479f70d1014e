"""Steps as command lines: a step's options are those of its command, checked before anything runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gqkva_convert.errors import RecipeError
from gqkva_convert.recipes.schema import Step, unknown

# Options that a recipe decides by itself, and what stands in their place.
RESERVED = {
    "as_json": "give --json to gqkva run",
    "overwrite": "a recipe replaces what it made itself",
    "resume": "a recipe goes on by itself",
}
# Commands that cannot be steps.
NO_STEPS = ("run",)


@dataclass(frozen=True)
class CommandLine:
    """A step as it is called.

    Attributes:
        step: The step.
        command: The command, of the command line's framework.
        words: What stands behind ``gqkva COMMAND``.
    """

    step: Step
    command: Any
    words: tuple[str, ...]

    def with_flag(self, flag: str) -> CommandLine:
        """The same with one flag more, where the command has it."""
        known = {option for parameter in self.command.params for option in parameter.opts}
        return CommandLine(self.step, self.command, (*self.words, flag)) if flag in known else self

    def __str__(self) -> str:
        line = shlex.join((self.step.command, *self.words))
        if self.step.accelerate is None:
            return f"gqkva {line}"
        return shlex.join(["accelerate", *self._launcher()]) + f" -m gqkva_convert {line}"

    def _launcher(self) -> list[str]:
        wanted = self.step.accelerate
        if isinstance(wanted, int):
            return ["launch", "--num_processes", str(wanted)]
        return ["launch", "--config_file", str(wanted)]

    def launched(self) -> list[str]:
        """The same as words for a new process, under `accelerate launch`."""
        module = ["-m", "accelerate.commands.accelerate_cli"]
        command = ["-m", "gqkva_convert", self.step.command, *self.words]
        return [sys.executable, *module, *self._launcher(), *command]

    def values(self) -> dict[str, Any]:
        """What the command would be given, by parameter; None for what is not said."""
        with self.command.make_context(self.step.command, list(self.words)) as context:
            return dict(context.params)

    def run(self) -> None:
        """Run it in this process.

        Raises:
            GqkvaError: As the command.
        """
        with self.command.make_context(self.step.command, list(self.words)) as context:
            self.command.invoke(context)


def command_line(step: Step, commands: Mapping[str, Any]) -> CommandLine:
    """A step as a command line.

    Args:
        step: With variables in their places.
        commands: Commands by name, as the command line's framework holds them.

    Raises:
        RecipeError: An option does not exist, or its value is not of its kind.
    """
    command = commands[step.command]
    parameters = {parameter.name: parameter for parameter in command.params}
    for name in step.options:
        if name in RESERVED:
            raise RecipeError(f"step {step.name}: {name} is not set in recipes; {RESERVED[name]}")
        if name not in parameters:
            known = [known for known in parameters if known not in RESERVED]
            raise RecipeError(f"step {step.name}: {step.command} has {unknown('option', name, known)}")
    words: list[str] = []
    behind: list[str] = []
    for name, parameter in parameters.items():
        value = step.options.get(name)
        if parameter.param_type_name == "argument":
            if value is not None:
                behind += map(str, value if isinstance(value, list) else [value])
            elif parameter.required:
                raise RecipeError(f"step {step.name}: {step.command} needs {name}")
        elif value is not None:
            words += _option(parameter, value)
    line = CommandLine(step, command, (*behind, *words))
    # The command's own conversions and choices; nothing of it runs.
    try:
        command.make_context(step.command, list(line.words)).close()
    except Exception as error:
        describe = getattr(error, "format_message", None)
        message = str(describe() if describe is not None else error)
        raise RecipeError(f"step {step.name}: {message.strip().splitlines()[0]}") from error
    return line


def _option(parameter: Any, value: Any) -> list[str]:
    """An option and its value as words."""
    name = parameter.opts[0]
    if isinstance(value, bool):
        if value:
            return [name]
        return [parameter.secondary_opts[0]] if parameter.secondary_opts else []
    if isinstance(value, dict):
        value = [f"{key}={part}" for key, part in value.items()]
    if isinstance(value, list):
        if parameter.multiple:
            return [word for part in value for word in (name, str(part))]
        return [name, ",".join(map(str, value))]
    return [name, str(value)]
