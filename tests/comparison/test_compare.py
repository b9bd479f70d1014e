"""Models side by side: what was measured, nothing else; repetitions with their spread."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learners
import pytest
from typer.testing import Result

import gqkva_convert
from gqkva_convert.comparison.rows import student_interval

Run = Callable[..., Result]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def measure(
    folder: Path, value: float, *, data: str = "texts.jsonl", difference: float | None = None
) -> None:
    """Leave a measurement beside weights, as `gqkva evaluate` writes it."""
    metric: dict[str, Any] = {"metric": "loss", "value": value, "interval": [value - 1, value + 1]}
    if difference is not None:
        metric |= {"difference": difference, "difference_interval": [difference - 0.1, difference + 0.1]}
    path = folder / "gqkva_evaluation.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else []
    results.append(
        {"task": "lm-eval", "data": f"/somewhere/{data}", "metrics": [{**metric, "better": "lower"}]}
    )
    path.write_text(json.dumps({"format_version": 1, "results": results}))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """An original with three seeds, and a conversion of the first."""
    folder = tmp_path / "models"
    for seed, value in enumerate((3.0, 4.0, 5.0)):
        measure(learners.make_decoder(folder / f"mha-seed{seed}"), value)
    gqkva_convert.convert(folder / "mha-seed0", folder / "gqa", gkv=2, merge="mean")
    measure(folder / "gqa", 6.0, difference=2.0)
    return folder


def test_repetitions_are_one_row_with_students_interval(models: Path) -> None:
    """Three values of standard deviation 1: the mean and 4.303 standard errors of it (Student, 1908)."""
    found = gqkva_convert.compare([models])
    original, converted = found["rows"]
    assert (original["name"], original["repeats"], converted["name"]) == ("mha", 3, "gqa")
    value = original["metrics"]["loss on texts.jsonl"]
    assert value["value"] == 4.0
    assert value["repeats"] == (3.0, 4.0, 5.0)
    half = 4.302653 / math.sqrt(3)
    assert value["interval"] == pytest.approx((4 - half, 4 + half), abs=1e-5)
    # A single model keeps the interval over samples.
    assert converted["metrics"]["loss on texts.jsonl"]["interval"] == (5.0, 7.0)
    assert converted["method"] == "neighbour groups, mean"
    assert original["sizes"]["kv-cache"] == 2 * converted["sizes"]["kv-cache"]


def test_students_interval_covers_the_mean() -> None:
    """Of 400 samples of four from a normal distribution about 95 % cover its mean."""
    import numpy as np

    draws = np.random.default_rng(0).normal(size=(400, 4))
    covered = sum(low <= 0 <= high for low, high in (student_interval(list(row)) for row in draws))
    assert 0.92 < covered / 400 < 0.98


def test_files_hold_the_same_numbers_as_the_table(models: Path, gqkva: Run, tmp_path: Path) -> None:
    """JSON with what every folder measured, Markdown for documents, a picture a metric."""
    measure(models / "gqa", 7.0, data="other.txt")
    out = tmp_path / "out"
    asked = ["--metric", "loss on texts.jsonl", "--metric", "loss minus the original's", "--size", "kv-cache"]
    result = gqkva("compare", models, *asked, "--out", out)
    assert result.exit_code == 0, result.stderr
    data = json.loads((out / "comparison.json").read_text())
    assert [row["name"] for row in data["rows"]] == ["mha", "gqa"]
    assert [member["name"] for member in data["rows"][0]["members"]] == [
        "mha-seed0",
        "mha-seed1",
        "mha-seed2",
    ]
    assert "loss on other.txt" in data["rows"][1]["members"][0]["metrics"]
    markdown = (out / "comparison.md").read_text().splitlines()
    assert [line[0] for line in markdown if line] == ["|"] * 4 + ["l"]
    assert "intervals are over samples where there is one repetition" in markdown[-1]
    assert markdown[3].endswith("| 6.0000 | 5.0000 to 7.0000 | 2.0000 | 1.9000 to 2.1000 |")
    assert markdown[2].endswith("| - | - |")
    assert "6.0000" in result.stdout
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"loss-on-texts.jsonl.png", "loss-minus-the-original-s-on-texts.jsonl.png"}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in out.glob("*.png"))
    assert json.loads(gqkva("compare", models, *asked, "--json").stdout) == json.loads(json.dumps(data))


def test_folders_of_one_name_are_told_apart(models: Path, tmp_path: Path) -> None:
    other = tmp_path / "others" / "gqa"
    gqkva_convert.convert(models / "mha-seed0", other, gkv=1, merge="mean")
    measure(other, 9.0)
    rows = gqkva_convert.compare([models / "gqa", other])["rows"]
    assert [row["name"] for row in rows] == ["models/gqa", "others/gqa"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["models", "--metric", "accuracy"], 13, "no metric 'accuracy' was measured; there are loss on"),
        (["models", "--size", "heads"], 13, "no size 'heads'; choose one of parameters, bytes, kv-cache"),
        (["nowhere"], 3, "nowhere is not a folder"),
        (["."], 3, "is no checkpoint and holds none"),
        (["models", "--out", "models/gqa/config.json"], 7, "cannot write into"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    code: int,
    message: str,
    models: Path,
    gqkva: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = gqkva("compare", *arguments)
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (code, 1), result.stderr
    assert message in result.stderr


def test_only_what_differs_in_its_seed_is_a_repetition(tmp_path: Path) -> None:
    """Folders of one name in different places are different models, and one folder named twice is one."""
    for number, place in enumerate(("one/trained", "two/trained")):
        for seed in (0, 1):
            measure(learners.make_decoder(tmp_path / place / f"mha-seed{seed}"), 1.0 + number)
    places = [tmp_path / place / "trained" for place in ("one", "two")]
    found = gqkva_convert.compare([*places, places[0] / ".." / "trained"])
    rows = {row["name"]: row["repeats"] for row in found["rows"]}
    assert rows == {"one/trained/mha": 2, "two/trained/mha": 2}


def test_what_cannot_be_compared_is_marked_or_refused(models: Path, gqkva: Run, tmp_path: Path) -> None:
    """Other numbers of samples, other originals; two files of one name are not told apart by chance."""
    other = learners.make_decoder(tmp_path / "other")
    path = other / "gqkva_evaluation.json"
    metric = {"metric": "loss", "value": 1.0, "interval": [1.1, 1.2], "difference": 0.5, "better": "lower"}
    results = [
        {"task": "lm-eval", "data": "texts.jsonl", "samples": count, "against": "m", "metrics": [metric]}
        for count in (32, 64)
    ]
    path.write_text(json.dumps({"format_version": 1, "results": results[:1]}))
    data = json.loads((models / "gqa" / "gqkva_evaluation.json").read_text())
    data["results"][0] |= {"samples": 1000, "against": "n"}
    (models / "gqa" / "gqkva_evaluation.json").write_text(json.dumps(data))
    wanted = ("--metric", "loss minus the original's", "--metric", "loss", "--out", tmp_path / "out")
    result = gqkva("compare", models / "gqa", other, *wanted)
    assert result.exit_code == 0, result.stderr
    assert "measured on 32 or 1000 samples" in result.stderr
    assert "measured against different originals, m and n" in (tmp_path / "out" / "comparison.md").read_text()
    path.write_text(json.dumps({"format_version": 1, "results": results}))
    both = gqkva("compare", other, "--metric", "loss on texts.jsonl, samples 64")
    assert (both.exit_code, "1.0000" in both.stdout) == (0, True)
    path.write_text(json.dumps({"format_version": 1, "results": [results[0], results[0]]}))
    twice = gqkva("compare", other)
    assert (twice.exit_code, "was measured twice on what is called texts.jsonl" in twice.stderr) == (13, True)


def test_damaged_records_of_training_are_one_line(gqkva: Run, models: Path, tmp_path: Path) -> None:
    folder = learners.make_decoder(tmp_path / "mha")
    measure(folder, 1.0)
    (folder / "gqkva_training.json").write_text('{"seconds_per_step": "fast", "tokens": "many"}')
    report = json.loads((models / "gqa" / "gqkva_report.json").read_text())
    (models / "gqa" / "gqkva_report.json").write_text(json.dumps({**report, "uptraining": [1]}))
    for place, code, words in (
        (folder, 3, "is not what `gqkva uptrain` writes"),
        (models / "gqa", 9, "is damaged or of another version: uptraining"),
    ):
        result = gqkva("compare", place)
        assert (result.exit_code, len(result.stderr.strip().splitlines())) == (code, 1), result.stderr
        assert words in result.stderr


def test_names_are_no_formulas(gqkva: Run, tmp_path: Path) -> None:
    folder = learners.make_decoder(tmp_path / "a$\\q$b")
    measure(folder, 1.0)
    assert gqkva("compare", folder, "--out", tmp_path / "out").exit_code == 0


def test_what_was_not_measured_is_said(gqkva: Run, tmp_path: Path) -> None:
    folder = learners.make_decoder(tmp_path / "mha")
    nothing = gqkva("compare", folder)
    assert (nothing.exit_code, "nothing was measured" in nothing.stderr) == (13, True)
    (folder / "gqkva_evaluation.json").write_text("[]")
    damaged = gqkva("compare", folder)
    assert (damaged.exit_code, "is not what `gqkva evaluate` writes" in damaged.stderr) == (3, True)


def test_repetitions_must_be_of_one_size(models: Path, gqkva: Run) -> None:
    """Two models that only their names make one are no repetitions."""
    other = learners.make_decoder(models / "mha-seed7", hidden_size=64)
    measure(other, 1.0)
    result = gqkva("compare", models)
    assert (result.exit_code, "differ in size; rename one" in result.stderr) == (13, True)
