"""Estimates of a recipe's steps, without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.hub import BUILT_IN, is_fetched, is_hub_id, locate
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.conversion.inspect import inspect
from gqkva_convert.errors import GqkvaError, RecipeError
from gqkva_convert.recipes.commands import CommandLine
from gqkva_convert.recipes.estimates import Estimate, Size, Speed, fresh_size, positions_of, speed_of
from gqkva_convert.recipes.schema import Assumed, Recipe
from gqkva_convert.uptraining.settings import choose_settings


def dry_run(recipe: Recipe, lines: Sequence[CommandLine], *, here: bool) -> dict[str, Any]:
    """Estimate every step; nothing is downloaded but headers of Hub models.

    Args:
        recipe: The recipe.
        lines: Its steps.
        here: Reckon with this machine, not with the GPUs that the recipe asks for.

    Returns:
        JSON data: the recipe's needs, the speed it is reckoned with, and what each step would take.

    Raises:
        RecipeError: A step cannot be estimated because it cannot run.
    """
    speed = speed_of(None if here else recipe.gpus)
    estimator = _Estimator(recipe.assume, speed)
    return {
        "description": recipe.description,
        "needs": recipe.needs,
        "expect": recipe.expect,
        "operations_per_second": speed.operations,
        "speed": speed.source,
        "steps": [
            {"name": line.step.name, "command": str(line), **asdict(estimator.estimate(line))}
            for line in lines
        ],
    }


class _Estimator:
    """Estimates steps in order: those before a step make or fetch models that it reads."""

    def __init__(self, assume: Mapping[str, Assumed], speed: Speed) -> None:
        self.assume = assume
        self.speed = speed
        self.sizes: dict[str, Size | None] = {}
        self.there: set[str] = set()  # made by a step, or fetched by one

    def estimate(self, line: CommandLine) -> Estimate:
        try:
            return self._estimate(line)
        except GqkvaError as error:
            raise RecipeError(f"step {line.step.name}: {error}") from error

    def _estimate(self, line: CommandLine) -> Estimate:
        facts, values = line.facts, line.values()
        if "settings" in values:
            values |= choose_settings(values["settings"], values).model_dump(include={"teacher"})
        subject = _subject(line, values)
        model = fresh_size(line.keywords()) if facts.makes_model else self._size_of(subject)
        if facts.writes is not None and values[facts.writes] is not None:
            written = str(values[facts.writes])
            self.sizes[written] = model  # an upper bound: conversions only get smaller
            self.there.add(written)
        others = [values[name] for name in ("against", "teacher") if values.get(name) is not None]
        if isinstance(facts.estimate, str):
            estimate = Estimate(note=facts.estimate)
        elif model is None:
            estimate = Estimate(note="the model's size is not known here")
        else:
            known = [size for size in map(self._size_of, others) if size is not None]
            estimate = facts.estimate(values, model, known, self.speed)
            notes = ("size assumed" if model.assumed else "", estimate.note)
            estimate = replace(estimate, note=", ".join(filter(None, notes)))
        if facts.reads_headers_alone:
            return estimate
        return replace(estimate, download_bytes=self._fetched((subject, *others), values.get("revision")))

    def _fetched(self, names: Sequence[str | None], revision: str | None) -> int | None:
        """Return the bytes of those models that no step before has made or fetched; None for none."""
        fetched = {
            name for name in names if name is not None and is_hub_id(name) and not is_fetched(name, revision)
        } - self.there
        self.there |= fetched
        return sum(size.nbytes for size in map(self._size_of, fetched) if size is not None) or None

    def _size_of(self, name: str | None) -> Size | None:
        if name is None:
            return None
        if name not in self.sizes:
            self.sizes[name] = self._read_size(name)
        return self.sizes[name]

    def _read_size(self, name: str) -> Size | None:
        try:
            facts = inspect(name)
        except GqkvaError:
            if name in self.assume:
                return Size(self.assume[name].parameters, self.assume[name].bytes, assumed=True)
            return None
        folder = locate(name).folder if name == BUILT_IN else Path(name)
        path = folder / "config.json"
        config = read_json(path) if path.is_file() else {}
        return Size(facts["parameters"]["total"], facts["bytes"], *positions_of(config))


def _subject(line: CommandLine, values: Mapping[str, Any]) -> str | None:
    """Return the model that a step reads: its first argument."""
    first = next((option for option in line.options if option.is_argument), None)
    if first is None or first.is_repeated or line.facts.makes_model:
        return None
    return str(values[first.name])
