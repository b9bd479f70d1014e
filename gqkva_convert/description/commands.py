"""The command lines that made a folder, from its report, without the user's folder names."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from gqkva_convert.data.names import short_word
from gqkva_convert.description.facts import Facts
from gqkva_convert.options import options_of
from gqkva_convert.records.training import Training
from gqkva_convert.uptraining.settings import TrainingSettings
from gqkva_convert.uptraining.uptrain import uptrain

# Settings of a training run that `gqkva uptrain` has an option for; the others are given with --set.
_OPTIONS = {option.name for option in options_of(uptrain)} & set(TrainingSettings.model_fields)


def making_commands(facts: Facts) -> list[str]:
    """Return the commands that were run, in order; none if the report does not record them."""
    if len(facts.report.command) < 3:
        return []
    command, source, out, *options = facts.report.command
    base, _ = facts.base()
    found = [_line(["gqkva", command, source if base is None else base, out, *options])]
    if facts.training is not None:
        found.append(_line(_training_arguments(out, facts.training)))
    return found


def _training_arguments(folder: str, training: Training) -> list[str]:
    processes = training.processes or 1
    arguments = ["gqkva", "uptrain", folder]
    if processes > 1:
        launcher = ["accelerate", "launch", "--num_processes", str(processes)]
        arguments = [*launcher, "-m", "gqkva_convert", "uptrain", folder]
    # What accelerate was set up with counts where the settings say nothing.
    found = {"mixed_precision": training.mixed_precision, **training.settings}
    for name, value in found.items():
        if value is None or (name == "mixed_precision" and value == "no"):
            continue
        if isinstance(value, dict):
            value = ",".join(f"{key}={part}" for key, part in value.items())
        if name in _OPTIONS:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        else:
            arguments += ["--set", f"{name}={value}"]
    return arguments


def _line(arguments: Iterable[str]) -> str:
    return shlex.join(short_word(argument) for argument in arguments)
