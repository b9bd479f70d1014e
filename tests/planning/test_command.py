"""`gqkva plan` writes a plan that can be read and pictures that can be looked at."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from gqkva_convert import verify
from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.heads import GROUPINGS
from gqkva_convert.planning.command import plan
from gqkva_convert.plans.request import Request
from gqkva_convert.transforms.merge import RULES

Run = Callable[..., Result]
# Readers of datasets leave files open that are not read to their end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("".join(f"value_{number} = function(argument_{number})\n" for number in range(3000)))
    return file


@pytest.mark.parametrize(
    ("grouping", "pictures"),
    [
        ("asym", {"similarity-self.png", "losses.png"}),
        ("evolution", {"similarity-self.png", "losses.png", "front.png"}),
    ],
)
def test_a_plan_comes_with_pictures(
    grouping: str, pictures: set[str], text: Path, tmp_path: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of every size, a row a layer, and a conversion by the plan that proves itself."""
    from gqkva_convert.grouping import evolution

    monkeypatch.setattr(evolution, "GENERATIONS", 10)
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "plan.json"
    options = ("--gkv", "4", "--grouping", grouping, "--calibration", text, "--calibration-samples", "8")
    result = gqkva(
        "plan", MODEL, *options, "--merge", "closed-form", "--refine", "none", "--out", file, "--json"
    )
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [row["layer"] for row in data["rows"]] == [0, 1, 2, 3]
    assert all(0 < row["loss"] < 1 and row["neighbour_loss"] > 0 for row in data["rows"])
    front = {"front.json"} if grouping == "evolution" else set()
    assert {Path(name).name for name in data["written"]} == {"plan.json", *pictures, *front}
    if front:
        points = json.loads((tmp_path / "plan" / "front.json").read_text())
        assert points == data["front"]
        chosen = [{frozenset(map(int, g.split("+"))) for g in row["groups"].split()} for row in data["rows"]]
        assert chosen in [[set(map(frozenset, layer)) for layer in point] for point in points["choices"]]
    for name in pictures:
        assert (tmp_path / "plan" / name).read_bytes().startswith(PNG)
    refused = gqkva("plan", MODEL, *options, "--out", file)
    assert refused.exit_code == 7
    assert "already exists" in refused.stderr
    assert gqkva("convert", MODEL, tmp_path / "out", "--plan", file).exit_code == 0
    assert verify(tmp_path / "out", MODEL)["passed"]


@pytest.mark.parametrize(
    ("grouping", "data", "compared"),
    [
        ("neighbour", False, {"neighbour", "weights", "loss"}),
        ("random", True, {"neighbour", "random", "weights", "activations", "asym", "loss"}),
        ("weights", False, {"neighbour", "weights", "loss"}),
        ("loss", True, {"neighbour", "weights", "activations", "asym", "loss"}),
        ("asym-raw", True, {"neighbour", "weights", "activations", "asym", "asym-raw", "loss"}),
    ],
)
def test_losses_are_drawn_for_every_cheap_grouping(
    grouping: str,
    data: bool,
    compared: set[str],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A line each, over all layers, measured alike; the chosen one's are those of the plan."""
    import matplotlib.pyplot as plt

    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))
    figures: list[Any] = []
    monkeypatch.setattr(plt, "close", figures.append)
    settings = DataSettings(str(text), samples=8, length=64) if data else None
    request = Request(gkv=4, grouping=grouping, merge="closed-form", refine="none", calibration=settings)
    result = plan(MODEL, tmp_path / "plan.json", request)
    (axis,) = figures[-1].axes
    lines = {str(line.get_label()).removesuffix(" (chosen)"): line.get_ydata() for line in axis.get_lines()}
    assert set(lines) == compared
    assert {text.get_text() for text in axis.get_legend().get_texts()} >= compared - {grouping}
    assert all(len(losses) == 4 and min(losses) > 0 for losses in lines.values())
    assert list(lines[grouping]) == pytest.approx([100 * row["loss"] for row in result["rows"]])
    assert list(lines["neighbour"]) == pytest.approx([100 * row["neighbour_loss"] for row in result["rows"]])
    assert sum(lines["loss"]) <= sum(lines["neighbour"])


@pytest.mark.parametrize("grouping", ["neighbour", "random"])
def test_what_unsearched_grids_lose_is_told(grouping: str, tmp_path: Path) -> None:
    """Heads as they stand lose what neighbours lose; others lose something else."""
    result = plan(MODEL, tmp_path / "plan.json", Request(gq=2, gkv=4, grouping=grouping))
    losses = [(row["loss"], row["neighbour_loss"]) for row in result["rows"]]
    assert all(min(pair) > 0 for pair in losses)
    assert all(loss == neighbours for loss, neighbours in losses) == (grouping == "neighbour")
    names = {Path(name).name for name in result["written"]}
    assert names == {"plan.json", "similarity-self.png", "losses.png"}


@pytest.mark.parametrize("options", [["--gq", "2", "--gkv", "4"], ["--gq", "4"]])
def test_shared_queries_are_grouped_too(options: list[str], tmp_path: Path, gqkva: Run) -> None:
    """Heads are assigned to the places of a grid, which is more than their order."""
    file = tmp_path / "plan.json"
    result = gqkva("plan", MODEL, *options, "--grouping", "loss", "--out", file, "--no-pictures", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert any(block["order"] is not None for block in json.loads(file.read_text())["blocks"])
    assert all(0 < row["loss"] <= row["neighbour_loss"] for row in data["rows"])
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize(("options", "sizes"), [({"gq": 2, "gkv": 4}, 2), ({"gq": 4}, 2)])
def test_the_groups_of_a_grid_are_outlined(
    options: dict[str, int], sizes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys where keys are shared, queries where those alone are."""
    import matplotlib.pyplot as plt

    figures: list[Any] = []
    monkeypatch.setattr(plt, "close", figures.append)
    result = plan(MODEL, tmp_path / "plan.json", Request(**options, grouping="weights"))
    boxes = [box for axis in figures[0].axes[:4] for box in axis.patches]
    assert [box.get_width() for box in boxes] == [sizes] * 16
    assert all(row["loss"] > 0 for row in result["rows"])


@pytest.mark.parametrize(
    ("out", "words"), [("plan.txt", "a plan file ends in .json"), ("absent/\0/plan.json", "")]
)
def test_a_plan_that_cannot_be_written_is_refused(out: str, words: str, tmp_path: Path, gqkva: Run) -> None:
    if "\0" in out:
        (tmp_path / "file").write_text("")
        out, words = "file/plan.json", "cannot be written"
    result = gqkva("plan", MODEL, "--gkv", "4", "--out", tmp_path / out)
    assert result.exit_code == 7, result.output
    assert words in result.stderr


@pytest.mark.parametrize(
    ("model", "data", "options"),
    [
        ("vit-fmnist-hf", "images", ["--gkv", "2"]),
        ("stories260K-hf", "text/tinystories/tinystories-train-head-2MiB.txt", ["--gkv", "2", "--gq", "8"]),
        ("aidreams230K-mha-hf", "text/aidreams/sampled-by-original-t1.txt", ["--kv-budget", "50%"]),
        ("gpt-nano-sort-hf", None, ["--gkv", "1"]),
    ],
)
def test_real_models_are_planned_converted_and_proven(
    model: str,
    data: str | None,
    options: list[str],
    shared_models: Path,
    tmp_path: Path,
    gqkva: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images, grouped sources, budgets, and a model without text of its own."""
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))
    arguments: list[Any] = ["convert", shared_models / model, tmp_path / "out", *options]
    if data == "images":
        import numpy as np
        from PIL import Image

        (tmp_path / "images").mkdir()
        for number, picture in enumerate(
            np.load(shared_models.parent / "images/fmnist-900.npz")["images"][:24]
        ):
            Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
        arguments += ["--calibration", tmp_path / "images", "--calibration-samples", "24"]
    elif data is not None:
        arguments += ["--calibration", shared_models.parent / data, "--calibration-samples", "16"]
    result = gqkva(*arguments)
    if "--gq" in options:
        assert result.exit_code == 2
        assert "query heads can only be merged in a multi-head source" in result.stderr
        return
    assert result.exit_code == 0, result.output
    assert gqkva("verify", tmp_path / "out", "--against", shared_models / model).exit_code == 0


def test_a_budget_for_a_source_with_shared_queries_is_refused(tmp_path: Path, gqkva: Run) -> None:
    """As with numbers of heads: what has been merged already is not merged again."""
    assert gqkva("convert", MODEL, tmp_path / "gkva", "--gq", 4).exit_code == 0
    result = gqkva("plan", tmp_path / "gkva", "--out", tmp_path / "plan.json", "--kv-budget", "50%")
    assert result.exit_code == 2, result.output
    assert "the source is GKVA-4; its heads cannot be merged further" in result.stderr


@pytest.mark.parametrize("command", ["convert", "plan"])
def test_help_names_every_rule_and_grouping(command: str, gqkva: Run) -> None:
    """A rule that is entered in its table alone would be there for those who read the source."""
    words = re.split(r"[^\w-]+", gqkva(command, "--help").output)
    assert {*RULES, *GROUPINGS} <= set(words)
