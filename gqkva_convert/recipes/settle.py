"""From what a recipe says to the steps that run: changes, repetitions and variables in their places."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gqkva_convert.errors import RecipeError
from gqkva_convert.recipes.schema import WORK, Recipe, Repeated, Step, unknown

_REFERENCE = re.compile(r"\$\{([a-z][a-z0-9_]*)(?:\.([a-z][a-z0-9_]*))?\}")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9_-]+")


def settle(recipe: Recipe, changes: Iterable[str], work: Path) -> tuple[Step, ...]:
    """The steps that a recipe stands for.

    Args:
        recipe: As it was read.
        changes: ``variable=value`` and ``step.option=value``; values are YAML. A change of a step that is
            repeated is one of all its repetitions; each has a name of its own, too.
        work: The folder of its results.

    Raises:
        RecipeError: A change is not of that form or names what does not exist, or a step uses a variable
            that does not exist.
    """
    variables, options = _parsed(recipe, changes)
    steps = tuple(_written_out(recipe.steps, {**variables, WORK: str(work)}))
    for change, (name, option, value) in options.items():
        if not any(name in (step.name, step.repeats) for step in steps):
            known = dict.fromkeys(name for step in steps for name in (step.repeats or step.name, step.name))
            raise RecipeError(f"--set {change}: {unknown('step', name, known)}")
        steps = tuple(
            step.model_copy(update={"options": {**step.options, option: value}})
            if name in (step.name, step.repeats)
            else step
            for step in steps
        )
    return steps


def _parsed(recipe: Recipe, changes: Iterable[str]) -> tuple[dict[str, Any], dict[str, tuple[str, str, Any]]]:
    """Variables after the changes, and changes of options by what was typed."""
    variables = dict(recipe.variables)
    options: dict[str, tuple[str, str, Any]] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise RecipeError(f"--set {change!r}: write variable=value or step.option=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {change!r}: the value is not YAML") from error
        step, dot, option = name.strip().partition(".")
        if dot:
            options[change] = (step, option.replace("-", "_"), value)
        elif step in variables:
            variables[step] = value
        else:
            raise RecipeError(f"--set {change}: {unknown('variable', step, variables)}")
    return variables, options


def _written_out(
    steps: Sequence[Step | Repeated], variables: Mapping[str, Any], behind: tuple[str, ...] = ()
) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, Step):
            filled = {
                "options": _fill(step.options, variables, step.name),
                "accelerate": _fill(step.accelerate, variables, step.name),
            }
            if behind:
                filled |= {"name": "-".join((step.name, *behind)), "repeats": step.name}
            yield step.model_copy(update=filled)
            continue
        choices = [_choices(name, value, variables) for name, value in step.values.items()]
        for chosen in itertools.product(*choices):
            values = dict(zip(step.values, chosen, strict=True))
            names = [_NOT_IN_NAMES.sub("-", str(_name(value)).lower()) for value in values.values()]
            yield from _written_out(step.steps, {**variables, **values}, (*behind, *names))


def _choices(name: str, value: Any, variables: Mapping[str, Any]) -> list[Any]:
    """What a name stands for, one after the other; a mapping's entries all have the same keys afterwards."""
    value = _fill(value, variables, f"for {name}")
    if name in variables:
        raise RecipeError(f"for {name}: there is a variable of that name; give it another")
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(entry, (dict, type(None))) for entry in value.values())
    ):
        keys = dict.fromkeys(key for entry in value.values() for key in entry or ())
        return [{**dict.fromkeys(keys), **(entry or {}), "name": choice} for choice, entry in value.items()]
    if isinstance(value, list) and value and not any(isinstance(entry, (dict, list)) for entry in value):
        return value
    raise RecipeError(
        f"for {name}: write a list of values, or a mapping from names to mappings, found {value!r}"
    )


def _name(value: Any) -> Any:
    return value["name"] if isinstance(value, dict) else value


def _fill(value: Any, variables: Mapping[str, Any], step: str) -> Any:
    """A value with variables in their places; one that is the whole value keeps its type."""
    if isinstance(value, list):
        return [_fill(part, variables, step) for part in value]
    if isinstance(value, dict):
        return {key: _fill(part, variables, step) for key, part in value.items()}
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole:
        return _found(whole, variables, step)
    return _REFERENCE.sub(lambda match: str(_found(match, variables, step)), value)


def _found(match: re.Match[str], variables: Mapping[str, Any], step: str) -> Any:
    name, key = match[1], match[2]
    if name not in variables:
        raise RecipeError(f"step {step}: {unknown('variable', name, variables)}")
    value = variables[name]
    if key is None:
        return _name(value) if isinstance(value, dict) and "name" in value else value
    if not isinstance(value, dict) or key not in value:
        keys = value if isinstance(value, dict) else ()
        raise RecipeError(f"step {step}: {name} has {unknown('key', key, keys)}")
    return value[key]
