"""Records are read by the class that wrote them, those of earlier versions included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learners
import pytest
from typer.testing import Result as CommandResult

from gqkva_convert.errors import CheckpointError, VerificationError
from gqkva_convert.records.bench import Bench, read_bench
from gqkva_convert.records.evaluation import (
    TITLES,
    Evaluation,
    Result,
    Score,
    add_results,
    read_evaluation,
    remove_results,
    result_keys,
)
from gqkva_convert.records.record import Record
from gqkva_convert.records.report import Report, read_report, read_training
from gqkva_convert.records.training import Training

Run = Callable[..., CommandResult]
# What an earlier version wrote, before results had a `task_id`.
OLDER = Path(__file__).parent / "older"
FILES: dict[str, tuple[type[Record], Callable[[Path], Record | None]]] = {
    "gqkva_report.json": (Report, read_report),
    "gqkva_evaluation.json": (Evaluation, read_evaluation),
    "gqkva_bench.json": (Bench, read_bench),
}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A copy of a folder's records as an earlier version wrote them."""
    return shutil.copytree(OLDER, tmp_path / "older")


@pytest.mark.parametrize("name", FILES)
def test_files_of_an_earlier_version_are_read_and_kept(name: str, older: Path) -> None:
    """A folder that took hours to make and measure stays usable, and is written again unchanged."""
    kind, read = FILES[name]
    found = read(older)
    assert isinstance(found, kind)
    assert json.loads(json.dumps(found.to_dict())) == json.loads((older / name).read_text())


def test_training_of_an_earlier_version_is_read_from_both_places(older: Path) -> None:
    """A conversion holds it in its report, any other model in a file of its own."""
    reported = read_training(older)
    assert isinstance(reported, Training)
    assert reported.tokens == 2048
    (older / "gqkva_report.json").unlink()
    assert read_training(older) == reported


def test_files_that_the_commands_write_are_those_that_are_read(tmp_path: Path, gqkva: Run) -> None:
    """With no key that the class does not know: those would be read by nobody."""
    model = learners.make_decoder(tmp_path / "model")
    data = learners.write_texts(tmp_path / "texts.jsonl", 24)
    out, trained = tmp_path / "out", tmp_path / "trained"
    quick = ("--context", 20, "--batch", 1, "--new-tokens", 2, "--rounds", 1, "--dtype", "float32")
    for command in (
        ("convert", model, out, "--gkv", 2, "--calibration", data, "--calibration-samples", 4),
        ("uptrain", out, trained, "--data", data, "--tokens", 600, "--length", 16),
        ("verify", trained),
        ("evaluate", trained, "--against", model, "--data", data, "--samples", 4, "--length", 16),
        ("bench", trained, "--against", model, "--device", "cpu", *quick),
    ):
        result = gqkva(*command)
        assert result.exit_code == 0, result.output
    for name, (_, read) in FILES.items():
        found = read(trained)
        assert found is not None
        assert found.to_dict() == found.model_validate(json.loads((trained / name).read_text())).to_dict()
        assert list(unknown(found)) == []
    assert read_report(trained).uptraining is not None


def unknown(record: Any) -> list[str]:
    """Keys in a record, and in the records in it, that its class does not declare."""
    if isinstance(record, Record):
        inner = [key for name in type(record).model_fields for key in unknown(getattr(record, name))]
        return [*(record.model_extra or {}), *inner]
    if isinstance(record, dict):
        return [key for value in record.values() for key in unknown(value)]
    return [key for value in record for key in unknown(value)] if isinstance(record, list) else []


def test_keys_of_a_later_version_are_kept(older: Path) -> None:
    """An older gqkva that verifies a folder must not take away what a newer one wrote."""
    path = older / "gqkva_report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": {"x": [1]}}))
    assert read_report(older).to_dict()["later"] == {"x": [1]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda report: report.pop("source"), "source"),
        (lambda report: report["source"].pop("bytes"), "source.bytes"),
        (lambda report: report["files"].update({"model.safetensors": {}}), "files.model.safetensors.bytes"),
        (lambda report: report.update(plan=[]), "plan"),
        (lambda report: report.update(command="convert a b"), "command"),
        (lambda report: report.update(verification={"sha256": {}}), "verification.passed"),
        (lambda report: report.update(uptraining={"tokens": "many"}), "uptraining.tokens"),
        (lambda report: report.update(format_version=2), "format_version"),
        (lambda report: report.clear(), "format_version"),
    ],
)
def test_a_report_that_is_not_ours_is_refused_with_the_field(
    change: Callable[[dict[str, Any]], Any], field: str, older: Path, gqkva: Run
) -> None:
    """In one line and with the code of a proof that fails, whichever command reads it."""
    path = older / "gqkva_report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))
    with pytest.raises(VerificationError, match=f"another version: {field}: "):
        read_report(older)
    result = gqkva("report", older)
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (9, 1), result.stderr


def test_titles_of_earlier_files_have_their_task(older: Path) -> None:
    """They hold no id; a title that no version wrote is refused, and an id speaks for itself."""
    common = {"data": "x", "metrics": []}
    for name, title in TITLES.items():
        assert Result(task=title, **common).hub_task == name
    assert Result(task="lm-eval", **common).hub_task == "text-generation"
    assert Result(task="another title", task_id="fill-mask", **common).hub_task == "fill-mask"
    (older / "gqkva_evaluation.json").write_text(
        json.dumps({"format_version": 1, "results": [{"task": "language modeling", **common}]})
    )
    with pytest.raises(CheckpointError, match="no task 'language modeling'"):
        read_evaluation(older)


def test_a_comparison_is_told_from_what_both_models_have() -> None:
    """A divergence is no number of the model alone, so a card gives it only beside the original."""
    own = Score(metric="perplexity", value=2.0, against=1.0)
    between = Score(metric="KL from the original", value=0.1)
    beside = Result(task="language modelling", data="x", metrics=[own, between], against="source")
    assert [beside.is_comparison(score) for score in beside.metrics] == [False, True]
    alone = Result(task="language modelling", data="x", metrics=[between])
    assert not alone.is_comparison(between)


def test_a_result_replaces_an_earlier_one_of_the_same_alone(older: Path) -> None:
    """Of other data or settings it stands beside it; of other weights all earlier ones go."""
    found = read_evaluation(older)
    assert found is not None
    (old,) = found.results
    before = result_keys(older)
    again = old.model_copy(update={"samples": 7})
    other = old.model_copy(update={"settings": {"length": 5}})
    add_results(older, [again, other])
    assert result_keys(older).keys() == {*before, other.key}
    assert result_keys(older)[old.key] != before[old.key]
    remove_results(older, before)
    assert list(result_keys(older)) == [other.key]
    add_results(older, [old.model_copy(update={"model_sha256": "0"})])
    assert list(result_keys(older)) == list(before)
