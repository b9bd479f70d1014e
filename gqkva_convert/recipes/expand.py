"""Expand a recipe into the steps that run: changes applied, repetitions written out, variables replaced."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gqkva_convert.checkpoint.yamlfile import parse_yaml
from gqkva_convert.errors import RecipeError
from gqkva_convert.recipes.schema import WORK, Recipe, Repeated, Step, unknown

_WORD = re.compile(r"[a-z][a-z0-9_]*")
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
# Repetitions within repetitions, and variables of variables, grow by their powers.
MOST_STEPS = 10_000
MOST_PARTS = 1_000_000
MOST_CHARACTERS = 16 << 20
_NOT_IN_NAMES = re.compile(r"[^a-z0-9_-]+")


@dataclass(frozen=True)
class Choice:
    """One entry of a mapping that steps are repeated over: its name, and its keys."""

    name: str
    keys: dict[str, Any]


@dataclass
class Changes:
    """Changes of ``--set``.

    Attributes:
        variables: New values of variables.
        options: New values of options, with the step and what was typed.
        used: Texts of those that have found their step.
    """

    variables: dict[str, Any] = field(default_factory=dict)
    options: list[tuple[str, str, Any, str]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, changes: Iterable[str], variables: Mapping[str, Any]) -> Changes:
        """Read ``variable=value`` and ``step.option=value``; values are YAML.

        Raises:
            RecipeError: One is not of that form, or names a variable that does not exist.
        """
        found = cls()
        for change in changes:
            name, equals, text = change.partition("=")
            if not equals:
                raise RecipeError(f"--set {change!r}: write variable=value or step.option=value")
            value = parse_yaml(text, f"--set {change!r}", RecipeError)
            step, dot, option = name.strip().partition(".")
            if dot:
                found.options.append((step, option.replace("-", "_"), value, change))
            elif step in variables:
                found.variables[step] = value
            else:
                raise RecipeError(f"--set {change}: {unknown('variable', step, variables)}")
        return found

    def of(self, *names: str) -> dict[str, Any]:
        """Return new options of a step, which has several names."""
        found = {}
        for step, option, value, change in self.options:
            if step in names:
                found[option] = value
                self.used.add(change)
        return found


def expand(recipe: Recipe, changes: Iterable[str], work: Path) -> tuple[Step, ...]:
    """Return the steps of a recipe, with repetitions written out and variables replaced.

    Args:
        recipe: The recipe.
        changes: ``variable=value`` and ``step.option=value``. A change of a step that is repeated is one of
            all its repetitions; each has a name of its own, too.
        work: The folder of its results.

    Raises:
        RecipeError: A change is not of that form or names what does not exist, a step uses a variable that
            does not exist, or two steps would have one name.
    """
    asked = Changes.read(changes, recipe.variables)
    variables: dict[str, Any] = {WORK: str(work)}
    budget = _Budget()
    for name, value in {**recipe.variables, **asked.variables}.items():
        _check_word(name, "variable")
        variables[name] = _fill(value, variables, f"variable {name}", budget)
    steps = tuple(itertools.islice(_written_out(recipe.steps, variables, asked, budget), MOST_STEPS + 1))
    if len(steps) > MOST_STEPS:
        raise RecipeError(
            f"more than {MOST_STEPS:,} steps once repetitions are written out; divide the recipe"
        )
    for name, count in Counter(step.name for step in steps).items():
        if count > 1:
            raise RecipeError(
                f"two steps are called {name!r} once repetitions are written out; give the steps names, or "
                "the values others"
            )
    for step, _, _, change in asked.options:
        if change not in asked.used:
            known = dict.fromkeys(name for each in steps for name in (each.repeats or each.name, each.name))
            raise RecipeError(f"--set {change}: {unknown('step', step, known)}")
    return steps


def _written_out(
    steps: Sequence[Step | Repeated],
    variables: Mapping[str, Any],
    asked: Changes,
    budget: _Budget,
    behind: tuple[str, ...] = (),
) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, Repeated):
            choices = [_choices(name, value, variables, budget) for name, value in step.values.items()]
            for chosen in itertools.product(*choices):
                values = dict(zip(step.values, chosen, strict=True))
                names = [_NOT_IN_NAMES.sub("-", str(_name(value)).lower()) for value in chosen]
                yield from _written_out(step.steps, {**variables, **values}, asked, budget, (*behind, *names))
            continue
        name = "-".join((step.name, *behind))
        options = {**step.options, **asked.of(step.name, name)}
        try:
            yield Step(
                name=name,
                command=step.command,
                options=_fill(options, variables, f"step {step.name}", budget),
                accelerate=_fill(step.accelerate, variables, f"step {step.name}", budget),
                repeats=step.name if behind else "",
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise RecipeError(f"step {name}: {first['loc'][0]}: {first['msg'].lower()}") from error


def _choices(name: str, value: Any, variables: Mapping[str, Any], budget: _Budget) -> list[Any]:
    """Return the values of a name in turn; all entries of a mapping get the same keys."""
    _check_word(name, "for")
    if name in variables:
        raise RecipeError(f"for {name}: there is a variable of that name; give it another")
    value = _fill(value, variables, f"for {name}", budget)
    if (
        isinstance(value, dict)
        and value
        and all(isinstance(each, (dict, type(None))) for each in value.values())
    ):
        keys = dict.fromkeys(key for entry in value.values() for key in entry or ())
        return [
            Choice(str(choice), {**dict.fromkeys(keys), **(entry or {})}) for choice, entry in value.items()
        ]
    if isinstance(value, list) and value and not any(isinstance(each, (dict, list)) for each in value):
        return value
    raise RecipeError(
        f"for {name}: write a list of values, or a mapping from names to mappings, found {value!r}"
    )


def _name(value: Any) -> Any:
    return value.name if isinstance(value, Choice) else value


def _check_word(name: str, what: str) -> None:
    if _WORD.fullmatch(name) is None:
        raise RecipeError(f"{what} {name}: names are lower-case letters, digits and _")


@dataclass
class _Budget:
    """The parts and characters that may still be written out."""

    parts: int = MOST_PARTS
    characters: int = MOST_CHARACTERS

    def pay(self, value: Any, where: str) -> Any:
        """Take off a value with all that is in it, and return it."""
        self.parts -= 1
        self.characters -= len(value) if isinstance(value, str) else 0
        if min(self.parts, self.characters) < 0:
            raise RecipeError(
                f"{where}: the recipe has more than {MOST_PARTS:,} parts or {MOST_CHARACTERS:,} characters "
                "once repetitions and variables are written out; divide it"
            )
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            self.pay(part, where)
        return value


def _fill(value: Any, variables: Mapping[str, Any], where: str, budget: _Budget) -> Any:
    """Replace the variables in a value; a variable that is the whole value keeps its type."""
    if isinstance(value, list):
        return [_fill(part, variables, where, budget) for part in value]
    if isinstance(value, dict):
        return {key: _fill(part, variables, where, budget) for key, part in value.items()}
    if not isinstance(value, str):
        return budget.pay(value, where)
    whole = _REFERENCE.fullmatch(value)
    if whole:
        return budget.pay(_found(whole[1], variables, where), where)
    budget.pay(value, where)
    return _REFERENCE.sub(
        lambda match: str(budget.pay(str(_found(match[1], variables, where)), where)), value
    )


def _found(reference: str, variables: Mapping[str, Any], where: str) -> Any:
    """Return the value of a reference: a variable, the name of a choice, or a key of either."""
    name, dot, key = reference.partition(".")
    if not all(_WORD.fullmatch(part) for part in ((name, key) if dot else (name,))):
        raise RecipeError(f"{where}: ${{{reference}}} is no reference; write ${{name}} or ${{name.key}}")
    if name not in variables:
        raise RecipeError(f"{where}: {unknown('variable', name, variables)}")
    value = variables[name]
    if not dot:
        return _name(value)
    keys = value.keys if isinstance(value, Choice) else value
    if not isinstance(keys, dict) or key not in keys:
        raise RecipeError(
            f"{where}: {name} has {unknown('key', key, keys if isinstance(keys, dict) else ())}"
        )
    return keys[key]
