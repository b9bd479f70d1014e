"""Commands and public functions are told alike: names, defaults, what must be given, what is refused."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learners
import pytest
from typer.testing import Result

import gqkva_convert
from gqkva_convert import COMMANDS, EvaluationSettings, GqkvaError, Request, TrainingSettings
from gqkva_convert.cli.derived import derived_command

Run = Callable[..., Result]

# Python alone shows progress as it likes and may give settings as one object; the command line alone prints.
CALLBACKS = {"progress", "stages", "watch", "say", "call"}
OBJECTS = {"plan": "request", "evaluate": "settings"}
PRINTED = {"as_json"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_function_takes_what_its_command_takes(command: str) -> None:
    """Whoever read `--help` can write the call, and whoever read the call can write the command."""
    signature = inspect.signature(getattr(gqkva_convert, command)).parameters
    python_alone = CALLBACKS | {OBJECTS.get(command, "")}
    expected = {name: each for name, each in signature.items() if name not in python_alone}
    found = {each.name: each for each in derived_command(command).params if each.name not in PRINTED}
    assert list(found) == list(expected)
    for name, parameter in expected.items():
        option = found[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            assert option.opts == ["--set"]
            continue
        assert option.required == (parameter.default is parameter.empty), name
        if not option.required:
            assert told(option.default) == told(parameter.default), name
        if option.param_type_name == "argument":
            assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD, name


def told(default: Any) -> Any:
    """A default as the command line shows it; an empty sequence is nothing."""
    if isinstance(default, (tuple, list)):
        return ",".join(map(str, default)) or None
    return str(default) if isinstance(default, Path) else default


@pytest.mark.parametrize(
    ("command", "arguments", "options"),
    [
        ("convert", {"plan": "p.json", "gkv": 2}, ["--plan", "p.json", "--gkv", "2"]),
        ("convert", {"calibration_samples": 4}, ["--calibration-samples", "4"]),
        ("convert", {"kv_budget": "25%", "gkv": 2}, ["--kv-budget", "25%", "--gkv", "2"]),
        ("plan", {"merge": "auto", "gkv": 2}, ["--merge", "auto", "--gkv", "2"]),
        ("evaluate", {}, []),
        ("evaluate", {"data": "d.txt", "samples": 0}, ["--data", "d.txt", "--samples", "0"]),
        ("bench", {"batch": "one"}, ["--batch", "one"]),
        ("verify", {"layers": 0}, ["--layers", "0"]),
        ("uptrain", {"tokens": "1k"}, ["--tokens", "1k"]),
        ("uptrain", {"resume": True, "data": "d.txt"}, ["--resume", "--data", "d.txt"]),
        (
            "uptrain",
            {"data": "d", "tokens": 9, "weight_decai": 1},
            ["--data", "d", "--tokens", "9", "--set", "weight_decai=1"],
        ),
        (
            "pretrain",
            {"data": "d", "tokens": 9, "teacher": "t"},
            ["--data", "d", "--tokens", "9", "--set", "teacher=t"],
        ),
    ],
)
def test_python_refuses_what_the_command_line_refuses(
    command: str, arguments: dict[str, Any], options: list[str], llama: Path, gqkva: Run
) -> None:
    """In the same words, with the same exit code, before anything is read or written."""
    with pytest.raises(GqkvaError) as refused:
        getattr(gqkva_convert, command)(llama, **arguments)
    result = gqkva(command, llama, *options)
    assert (result.exit_code, result.stderr) == (refused.value.exit_code, f"error: {refused.value}\n")


@pytest.mark.parametrize(
    ("command", "settings", "beside", "named"),
    [
        ("plan", {"request": Request(gkv=2)}, {"gkv": 2}, "gkv"),
        ("evaluate", {"settings": EvaluationSettings(data="d.txt")}, {"seed": 1}, "--seed"),
        ("uptrain", {"settings": TrainingSettings(data="d", tokens=9)}, {"length": 8}, "--length"),
        ("uptrain", {"settings": TrainingSettings(data="d", tokens=9)}, {"ema": 0.9}, "--set"),
    ],
)
def test_whole_settings_stand_alone(
    command: str, settings: dict[str, Any], beside: dict[str, Any], named: str, llama: Path
) -> None:
    """Which of two values counts would be a guess."""
    with pytest.raises(GqkvaError, match=f"everything (itself|themselves); leave out {named}"):
        getattr(gqkva_convert, command)(llama, **settings, **beside)


def test_settings_are_told_flat_or_whole(tmp_path: Path) -> None:
    """Flat keywords, an object and a file of settings measure and train the same."""
    source = learners.make_decoder(tmp_path / "mha")
    data = learners.write_texts(tmp_path / "texts.jsonl", 40)
    flat = gqkva_convert.evaluate(source, data=data, length=32, save=False)
    settings = EvaluationSettings(data=str(data), length=32)
    assert gqkva_convert.evaluate(source, settings, save=False) == flat
    student = learners.make_conversion(source, tmp_path / "gqa")
    (tmp_path / "s.yaml").write_text(json.dumps({"data": str(data), "tokens": "9k", "length": 32}))
    losses = [
        gqkva_convert.uptrain(student, tmp_path / name, *given, **options)["held_out_loss"]
        for name, given, options in (
            ("flat", (), {"data": data, "tokens": 640, "length": 32, "held_out_rows": 4}),
            ("object", (TrainingSettings(data=str(data), tokens=640, length=32, held_out_rows=4),), {}),
            ("file", (tmp_path / "s.yaml",), {"tokens": 640, "held_out_rows": 4}),
        )
    ]
    assert losses[0] == losses[1] == losses[2]


def test_a_plan_is_asked_for_flat_or_whole(llama: Path, tmp_path: Path) -> None:
    flat = gqkva_convert.plan(llama, tmp_path / "a.json", gkv=2, pictures=False)
    whole = gqkva_convert.plan(llama, tmp_path / "b.json", Request(gkv=2), pictures=False)
    assert flat["plan"] == whole["plan"]


def test_a_dry_run_returns_what_its_command_prints(llama: Path, gqkva: Run) -> None:
    """The data of `--dry-run --json`, and nothing is written."""
    out = llama.parent / "out"
    data = gqkva_convert.convert(llama, out, gkv=2, dry_run=True)
    assert json.loads(gqkva("convert", llama, out, "--gkv", "2", "--dry-run", "--json").stdout) == data
    assert not out.exists()
    made = gqkva_convert.convert(llama, out, gkv=2)
    gqkva_convert.verify(made)
    sent = gqkva_convert.push(made, "me/out", dry_run=True)
    assert json.loads(gqkva("push", made, "me/out", "--dry-run", "--json").stdout) == sent


def test_a_file_of_settings_may_still_be_called_a_recipe(llama: Path, gqkva: Run) -> None:
    """Scripts of before this go on working; the help names it no more."""
    for name in ("--settings", "--recipe"):
        result = gqkva("uptrain", llama, name, "none.yaml")
        assert (result.exit_code, "none.yaml: cannot be read: No such file" in result.stderr) == (12, True)
    assert "--recipe" not in gqkva("uptrain", "--help").stdout
