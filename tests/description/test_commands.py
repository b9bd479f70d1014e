"""The commands on a card make the same folder again, and name nobody's folders."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learners
import pytest
from safetensors.torch import load_file
from typer.testing import Result

from gqkva_convert.cli.derived import derived_command
from gqkva_convert.description.card import model_card
from gqkva_convert.description.commands import making_commands
from gqkva_convert.description.facts import Facts
from gqkva_convert.uptraining.settings import TrainingSettings, choose_settings

Run = Callable[..., Result]


@pytest.mark.parametrize(
    "options",
    [
        ["--gkv", 2],
        [
            "--gq",
            2,
            "--gkv",
            2,
            "--grouping",
            "random",
            "--merge",
            "mean",
            "--seed",
            3,
            "--dtype",
            "bfloat16",
        ],
        ["--gkv", 2, "--calibration", "texts.jsonl", "--calibration-samples", 4, "--calibration-length", 16],
        ["--kv-budget", "50%", "--max-shard-size", "20KB"],
    ],
)
def test_the_command_of_a_card_makes_the_same_weights(
    options: list[Any], gqkva: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    learners.make_decoder(tmp_path / "model")
    learners.write_texts(tmp_path / "texts.jsonl", 40)
    assert gqkva("convert", tmp_path / "model", tmp_path / "out", *options).exit_code == 0
    (command,) = making_commands(Facts(tmp_path / "out", None))
    assert f"```\n{command}\n```" in str(model_card(tmp_path / "out"))
    assert command.startswith("gqkva convert model out ")
    first = weights(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "first")
    assert gqkva(*shlex.split(command)[1:]).exit_code == 0
    assert weights(tmp_path / "out") == first


def weights(folder: Path) -> dict[str, Any]:
    """Every tensor; headers are left out, which name the source as it was called."""
    return {
        name: (tensor.dtype, tensor.tolist())
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def test_the_command_of_a_training_has_the_same_settings(gqkva: Run, tmp_path: Path) -> None:
    learners.make_decoder(tmp_path / "model")
    learners.make_conversion(tmp_path / "model", tmp_path / "out")
    settings = TrainingSettings(
        data="corpus.jsonl",
        teacher="Qwen/Qwen2.5-7B",
        tokens=20_000_000,
        loss={"kl": 1.0, "task": 0.5},
        weight_decay=0.1,
        gradient_checkpointing=True,
        matching=0.0,
    )
    report = json.loads((tmp_path / "out" / "gqkva_report.json").read_text())
    report["uptraining"] = {
        "settings": settings.model_dump(exclude_defaults=True),
        "tokens": 20_000_000,
        "processes": 8,
    }
    (tmp_path / "out" / "gqkva_report.json").write_text(json.dumps(report))
    _, line = making_commands(Facts(tmp_path / "out", None))
    start = "accelerate launch --num_processes 8 -m gqkva_convert uptrain out "
    assert line.startswith(start)
    words = shlex.split(line.removeprefix(start))
    parsed = derived_command("uptrain").make_context("uptrain", ["out", *words]).params
    others = dict(pair.split("=", 1) for pair in parsed["others"])
    assert choose_settings(None, {**parsed, "others": others}) == settings


def test_precision_that_accelerate_was_set_up_with_is_named(tmp_path: Path) -> None:
    learners.make_decoder(tmp_path / "model")
    learners.make_conversion(tmp_path / "model", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "gqkva_report.json").read_text())
    for recorded, words in (("bf16", " --mixed-precision bf16"), ("no", "")):
        report["uptraining"] = {"settings": {"data": "x.jsonl"}, "tokens": 1, "mixed_precision": recorded}
        (tmp_path / "out" / "gqkva_report.json").write_text(json.dumps(report))
        assert making_commands(Facts(tmp_path / "out", None))[1] == f"gqkva uptrain out{words} --data x.jsonl"


def test_the_plan_of_a_report_is_the_plan_that_its_command_names(
    gqkva: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file itself is not sent along."""
    monkeypatch.chdir(tmp_path)
    learners.make_decoder(tmp_path / "model")
    learners.write_texts(tmp_path / "texts.jsonl", 40)
    asked = ["--gkv", 2, "--calibration", "texts.jsonl", "--calibration-samples", 4]
    assert gqkva("plan", "model", "--out", "plan.json", *asked).exit_code == 0
    assert gqkva("convert", "model", "out", "--plan", "plan.json").exit_code == 0
    assert "under `plan`" in str(model_card(tmp_path / "out"))
    first = weights(tmp_path / "out")
    plan = json.loads((tmp_path / "out" / "gqkva_report.json").read_text())["plan"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "out").rename(tmp_path / "first")
    (command,) = making_commands(Facts(tmp_path / "first", None))
    assert gqkva(*shlex.split(command)[1:]).exit_code == 0
    assert weights(tmp_path / "out") == first


def test_an_export_names_what_it_was_made_from(gqkva: Run, tmp_path: Path) -> None:
    """Folders above are left out."""
    learners.make_decoder(tmp_path / "private" / "model")
    learners.make_conversion(tmp_path / "private" / "model", tmp_path / "private" / "out", gq=2)
    assert gqkva("export", tmp_path / "private" / "out", tmp_path / "private" / "stock").exit_code == 0
    assert making_commands(Facts(tmp_path / "private" / "stock", None)) == ["gqkva export out stock"]


def test_a_report_that_names_no_command_shows_none(tmp_path: Path) -> None:
    learners.make_decoder(tmp_path / "model")
    learners.make_conversion(tmp_path / "model", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "gqkva_report.json").read_text())
    del report["command"]
    (tmp_path / "out" / "gqkva_report.json").write_text(json.dumps(report))
    assert making_commands(Facts(tmp_path / "out", None)) == []
    assert "```\n```" not in str(model_card(tmp_path / "out"))
