"""Settings: numbers as people write them, and one line for everything that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gqkva_convert.errors import TrainingError
from gqkva_convert.uptraining.engine.schedule import Schedule
from gqkva_convert.uptraining.settings import make_settings, read_settings

RECIPES = Path(__file__).parents[2] / "recipes"
BASE = {"data": "x.txt", "tokens": "20M"}


def test_numbers_are_written_as_people_write_them() -> None:
    found = make_settings(
        {**BASE, "batch_size": "1k", "teacher": "m", "loss": "kl,task=0.5", "matching": "30%"}
    )
    assert (found.tokens, found.batch_size, found.matching) == (20_000_000, 1000, 0.3)
    assert found.loss == {"kl": 1.0, "task": 0.5}
    counted = make_settings({"data": "x", "alpha": 0.05, "pretraining_tokens": "2T"})
    assert counted.token_budget == 100_000_000_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": None}, "data is missing; name what to train on"),
        ({"tokens": None}, "give one budget: tokens, samples, or alpha with pretraining_tokens; found none"),
        ({"samples": 4}, "found tokens and samples"),
        ({"tokens": "many"}, "tokens: write a number such as 500k or 20M .found 'many'"),
        ({"alpha": 0.5}, "found tokens and alpha"),
        ({"learningrate": 1}, "no setting 'learningrate'; did you mean learning_rate"),
        ({"loss": "kl"}, "loss kl needs a teacher"),
        ({"loss": "task,mse"}, "no loss mse; choose of task, kl, hidden, attention"),
        ({"loss": "task=0"}, "every weight of loss is 0"),
        ({"matching": 0.5}, "matching needs a teacher"),
        ({"temperature": 2}, "temperature needs a teacher"),
        ({"teacher_dtype": "float32"}, "teacher_dtype needs a teacher"),
        ({"lora_rank": 4}, "lora_rank is for train lora"),
        ({"tokens": None, "alpha": 0.5}, "alpha and pretraining_tokens go together"),
        ({"train": "some"}, "train: Input should be 'all', 'attention', 'kv' or 'lora'"),
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1"),
        ({"num_train_epochs": 0}, "num_train_epochs: Input should be greater than or equal to 1"),
        ({"num_train_epochs": 2, "streaming": True}, "over rows again, which a stream does not keep"),
        ({"ema": 1.5}, "ema: Input should be less than 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        make_settings({**BASE, **values})


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a list", "is not a mapping"), ("{", "line 1: not YAML"), (None, "No such file")],
)
def test_recipes_that_are_none_are_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(TrainingError, match=message):
        read_settings(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    "recipe", [*RECIPES.glob("uptrain/*.yaml"), *RECIPES.glob("*/training/*.yaml")], ids=str
)
def test_shipped_recipes_are_settings(recipe: Path) -> None:
    """Those beside a recipe of `gqkva run` get their data, and most their budget, from it."""
    found = read_settings(recipe)
    budget = {} if "samples" in found else {"tokens": 1}
    make_settings({"data": "some", **budget, **found}, recipe.name)


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_rates_rise_hold_and_fall(kind: str) -> None:
    """Matching falls to its end; then never above the highest rate, and low at the end."""
    schedule = Schedule(100, 20, kind, 10, 1.0, 0.5)
    rates = [schedule.at(step) for step in range(100)]
    assert rates[0] == 0.5
    assert rates[:20] == sorted(rates[:20], reverse=True)
    assert rates[20:30] == sorted(rates[20:30])
    assert max(rates[20:]) == 1.0
    assert (rates[-1] < 0.15) == (kind != "constant")
    assert all(rate > 0 for rate in rates)
