"""Steps say all that is to be computed, as plain data."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from gqkva_convert.heads import Variant
from gqkva_convert.plans.plan import make_plan
from gqkva_convert.source.model import SourceModel, open_model
from gqkva_convert.steps.make import make_steps

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_steps_are_plain_data(family: str, tiny: Tiny) -> None:
    """A step that held the model would bind arithmetic to disk; without it, any process can do it."""
    model = open_model(tiny(family))
    steps = make_steps(model, make_plan(model, Variant(None, 2))).steps
    merged = [step for step in steps if step.merge is not None]
    assert merged
    data = pickle.dumps(merged)
    assert SourceModel.__name__.encode() not in data
    assert pickle.loads(data) == merged
