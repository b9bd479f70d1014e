"""Grids are tried with a short fit where a long one follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gqkva_convert import convert, verify
from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.planning import groups, trials
from gqkva_convert.planning.choose import complete_plan, request_plan
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.plans.request import Request
from gqkva_convert.refinement import layerwise
from gqkva_convert.source.model import open_model

# Readers of datasets leave files open that are not read to their end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSettings:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"value_{number} = function(argument_{number})\n" for number in range(2000)))
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(groups, "_GRID_LOOKS", 80)
    return DataSettings(str(file), samples=8, length=64)


def planned(settings: DataSettings, **options: Any) -> Plan:
    located = locate(str(MODEL), None)
    request = Request(merge="closed-form", calibration=settings, **options)
    model = open_model(located.folder)
    return complete_plan(located, model, request_plan(model, request), request)[0]


def test_the_grid_of_the_least_error_is_planned(
    settings: DataSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No grid is tried twice, the one that the search proposes is the first, and a seed fixes all."""
    tried: dict[int, list[tuple[int | None, ...]]] = {}

    def error(laboratory: Any, plan: BlockPlan, *data: Any) -> float:
        tried.setdefault(plan.layer, []).append(plan.order)
        return rank(plan.order)

    def rank(order: tuple[int | None, ...]) -> float:
        return float(sum(place * (head or 0) for place, head in enumerate(order)))

    monkeypatch.setattr(trials, "_error", error)
    plan = planned(settings, gq=4, gkv=2, refine="layerwise")
    proposals = planned(settings, gq=4, gkv=2, refine="output")
    for block, proposal in zip(plan.blocks, proposals.blocks, strict=True):
        orders = tried[block.layer]
        assert orders[0] == proposal.order
        assert block.order == min(orders, key=rank)
        assert (
            2 < len({trials._grid(order, block.target) for order in orders}) == len(orders) <= trials.TRIALS
        )
    before = dict(tried)
    tried.clear()
    assert planned(settings, gq=4, gkv=2, refine="layerwise") == plan
    assert tried == before


@pytest.mark.parametrize(
    "options",
    [
        {"gq": 4, "gkv": 2, "refine": "output"},
        {"gq": 4, "gkv": 2, "refine": "layerwise", "grouping": "neighbour"},
        {"gkv": 4, "refine": "layerwise"},
    ],
)
def test_nothing_is_tried_where_no_fit_follows_or_no_grid_is_searched(
    options: dict[str, Any], settings: DataSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "_error", lambda *_: pytest.fail("tried"))
    planned(settings, **options)


def test_a_tried_grid_converts(
    settings: DataSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With real, very short trials and a very short fit."""
    monkeypatch.setattr(trials, "TRIALS", 4)
    monkeypatch.setattr(trials, "_STEPS", 2)
    short = layerwise.FitSettings(steps=2, positions=64, epochs=0)
    monkeypatch.setattr(layerwise, "FitSettings", lambda **options: short)
    out = convert(MODEL, tmp_path / "out", gq=4, gkv=2, refine="layerwise", calibration=settings)
    assert verify(out, MODEL)["passed"]
