"""Plan files: read back as they were written, and refused with the line of what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from gqkva_convert.planning.choose import request_plan
from gqkva_convert.plans.file import read_plan, write_plan
from gqkva_convert.plans.request import Request
from gqkva_convert.source.model import open_model

Run = Callable[..., Result]


@pytest.fixture
def plan_file(llama: Path, gqkva: Run) -> Path:
    file = llama.parent / "plan.json"
    result = gqkva("plan", llama, "--gkv", "2", "--grouping", "loss", "--out", file)
    assert result.exit_code == 0, result.output
    return file


def test_a_plan_is_read_back_as_it_was_written(plan_file: Path, llama: Path, tmp_path: Path) -> None:
    """And converting by it gives the bytes that the options give."""
    from gqkva_convert import convert

    model = open_model(llama)
    plan = read_plan(plan_file, model)
    write_plan(plan, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == plan_file.read_text()
    by_plan = convert(llama, tmp_path / "by-plan", plan=plan_file)
    by_options = convert(llama, tmp_path / "by-options", gkv=2, grouping="loss")
    for file in by_options.glob("*.safetensors"):
        assert (by_plan / file.name).read_bytes() == file.read_bytes()


def test_an_edited_plan_does_what_it_says(plan_file: Path, llama: Path, gqkva: Run) -> None:
    """Groups moved by hand, and another rule."""
    data = json.loads(plan_file.read_text())
    data["merge"] = "mean"
    data["blocks"][1]["order"] = [5, 1, 2, 3, 4, 0]
    plan_file.write_text(json.dumps(data, indent=2))
    out = llama.parent / "out"
    assert gqkva("convert", llama, out, "--plan", plan_file).exit_code == 0
    report = json.loads((out / "gqkva_report.json").read_text())
    assert report["plan"]["blocks"][1]["order"] == [5, 1, 2, 3, 4, 0]
    assert gqkva("verify", out, "--against", llama).exit_code == 0


def line_of(text: str, part: str, number: int = 0) -> int:
    lines = [place for place, line in enumerate(text.splitlines(), start=1) if part in line]
    return lines[number]


@pytest.mark.parametrize(
    ("change", "part", "number", "words"),
    [
        (
            lambda plan: plan["blocks"][1].update(order=[0, 0, 1, 2, 3, 4]),
            '"order"',
            1,
            "not one of its 6 heads",
        ),
        (lambda plan: plan["blocks"][0].update(target={"query": [0]}), '"target"', 0, "not a head layout"),
        (lambda plan: plan["blocks"][1].update(layer=7), '"layer"', 1, "a plan for layer 7"),
        (lambda plan: plan["blocks"][1].update(colour="red"), '"colour"', 0, "a block has no 'colour'"),
        (lambda plan: plan.update(merge="median"), '"merge"', 0, "no merge rule 'median'"),
        (lambda plan: plan.update(seed=-1), '"seed"', 0, "a seed is a whole number from 0 on"),
        (lambda plan: plan.update(seed=True), '"seed"', 0, "seed is a whole number, found True"),
        (lambda plan: plan.pop("dtype"), "{", 0, "the plan has no 'dtype'"),
        (lambda plan: plan["blocks"].insert(0, 7), "    7", 0, "a block is an object, found 7"),
        (
            lambda plan: plan["blocks"][0].update(rules={"scores": ["closed-form"] * 2}),
            '"rules"',
            0,
            ": rules has no 'values'",
        ),
        (lambda plan: plan["blocks"][0].update(order=5), '"order"', 0, "an order is a list of heads"),
        (lambda plan: plan["blocks"][1].update(layer="1"), '"layer"', 1, "layer is a whole number"),
        (lambda plan: plan.update(architecture="gpt2"), '"architecture"', 0, "architecture is null"),
        (lambda plan: plan.update(refine="output"), '"refine"', 0, "refine is a list of names"),
        (lambda plan: plan.update(refine=["polish"]), '"refine"', 0, "refine lists, in this order, any of"),
        (lambda plan: plan.update(seed="x"), '"seed"', 0, "seed is a whole number, found 'x'"),
        (lambda plan: plan.update(variant="../x"), '"variant"', 0, "a variant is a short name"),
        (lambda plan: plan["blocks"][0]["target"].update(head_dim=2), '"target"', 0, "2 features a head"),
        (lambda plan: plan["blocks"][0].update(order=[0.0, 1, 2, 3, 4, 5]), '"order"', 0, "whole numbers"),
        (lambda plan: plan.update(mergers="mean"), '"mergers"', 0, "a plan has no 'mergers'"),
        (lambda plan: plan["blocks"].pop(), '"blocks"', 0, "1 blocks, the model has 2"),
        (
            lambda plan: plan["blocks"][0].update(rules={"scores": ["mean"], "values": ["mean"]}),
            '"rules"',
            0,
            "rules for 1 key",
        ),
        (lambda plan: plan["blocks"][0].pop("target"), "    {", 0, "the block has no 'target'"),
        (lambda plan: plan["blocks"][0].update(target=[1]), '"target"', 0, "not a head layout: [1]"),
        (lambda plan: plan.update(merge="auto"), '"merge"', 0, "looks at data, and calibration names none"),
        (lambda plan: plan.update(refine=["output"]), '"refine"', 0, "calibration names none"),
        (lambda plan: plan.update(calibration=3), '"calibration"', 0, "calibration is an object"),
        (lambda plan: plan.update(calibration={"sample": 2}), '"sample"', 0, "calibration has no 'sample'"),
        (
            lambda plan: plan.update(calibration={"data": "x.txt", "length": -1}),
            '"length"',
            0,
            "sequences of -1 tokens",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(
    change: Callable[[dict[str, Any]], Any],
    part: str,
    number: int,
    words: str,
    plan_file: Path,
    llama: Path,
    gqkva: Run,
) -> None:
    """A plan of a large model has thousands of lines."""
    data = json.loads(plan_file.read_text())
    change(data)
    text = json.dumps(data, indent=2)
    plan_file.write_text(text)
    result = gqkva("convert", llama, llama.parent / "out", "--plan", plan_file)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert f"line {line_of(text, part, number)}:" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_files_that_are_no_plans_are_refused(tmp_path: Path, llama: Path, gqkva: Run) -> None:
    for text, words in (
        ("{", "line 1: not JSON"),
        ("[]", "it has no list of blocks"),
        ("{}", "no list of blocks"),
        ("[" * 100000, "nested"),
        ('{"blocks": [], "' + "k" * 2000 + '": {"' + "k" * 2000 + '": 1}}', "line 1: a plan has no 'kkk"),
        ('{"blocks": [],\n"a"\n:1}', "line 2: a plan has no 'a'"),
        ('{"blocks": [],\n"\\u0007\\u0000": 1}', "line 2: a plan has no '\\x07"),
        ("{" + '"seed": 0,\n' * 5000 + '"blocks": []}', "line 2: 'seed' stands there twice"),
        ('{"blocks": [' + "7,\n" * 500_000 + "7]}", "line 1: "),
        ('{"blocks": [' + " " * (16 << 20) + "]}", "is larger than 16.78 MB"),
        ('{"seed": ' + 5000 * "9" + "}", "line 1: not a conversion plan: Exceeds the limit"),
        ('{"seed": 0,\n"seed": 1, "blocks": []}', "line 2: 'seed' stands there twice"),
    ):
        (tmp_path / "plan.json").write_text(text)
        result = gqkva("convert", llama, tmp_path / "out", "--plan", tmp_path / "plan.json")
        assert result.exit_code == 2
        assert words in result.stderr
    result = gqkva("convert", llama, tmp_path / "out", "--plan", tmp_path / "absent.json")
    assert "cannot be read: No such file" in result.stderr
    for option in (["--gkv", "2"], ["--seed", "0"], ["--dtype", "float32"], ["--calibration-samples", "4"]):
        result = gqkva("convert", llama, tmp_path / "out", "--plan", tmp_path / "plan.json", *option)
        assert "says everything itself" in result.stderr


def test_tabs_are_no_trouble(plan_file: Path, llama: Path, gqkva: Run) -> None:
    """Editors indent JSON with them."""
    data = json.loads(plan_file.read_text())
    plan_file.write_text(json.dumps(data, indent="\t"))
    assert gqkva("convert", llama, llama.parent / "out", "--plan", plan_file, "--dry-run").exit_code == 0
    data["merge"] = "median"
    plan_file.write_text(json.dumps(data, indent="\t"))
    assert (
        "line 4: no merge rule" in gqkva("convert", llama, llama.parent / "out", "--plan", plan_file).stderr
    )


def test_a_position_bias_keeps_heads_in_their_places(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """T5's heads are bound to their index, so a plan that reorders them would change the model."""
    from gqkva_convert.errors import LayoutError

    model = open_model(tiny("t5"))
    plan = request_plan(model, Request(gkv=2))
    write_plan(plan, tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    data["blocks"][0]["order"] = [1, 0, 2, 3, 4, 5]
    (tmp_path / "plan.json").write_text(json.dumps(data, indent=2))
    with pytest.raises(LayoutError, match=r"line \d+: heads of this block are bound"):
        read_plan(tmp_path / "plan.json", model)
