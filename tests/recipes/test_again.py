"""A recipe run again: what is done stays done, what was cut off goes on, the log makes the same."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learners
import pytest
from typer.testing import Result

from gqkva_convert.recipes import run as running

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]


def left_out(gqkva: Run, *arguments: Any) -> list[bool]:
    result = gqkva("run", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return [step["left_out"] for step in json.loads(result.stdout)["steps"]]


def test_what_is_done_is_left_out_by_content(gqkva: Run, recipe: Path, source: Path, tmp_path: Path) -> None:
    """Neither names nor times of files decide, but what they hold."""
    work = ("--work", tmp_path / "work")
    assert left_out(gqkva, recipe, *work) == [False, False]
    assert left_out(gqkva, recipe, *work) == [True, True]
    os.utime(source / "model.safetensors")
    assert left_out(gqkva, recipe, *work) == [True, True]
    (tmp_path / "work" / "gqa" / "gqkva_evaluation.json").unlink()
    assert left_out(gqkva, recipe, *work) == [True, False]
    shutil.rmtree(tmp_path / "work" / "gqa")
    assert left_out(gqkva, recipe, *work) == [False, False]
    assert left_out(gqkva, recipe, *work, "--set", "gkv=1") == [False, False]
    assert left_out(gqkva, recipe, *work, "--set", "gkv=1", "--set", "evaluate.length=16") == [True, False]
    other = learners.make_decoder(tmp_path / "other", hidden_size=64)
    for name in ("model.safetensors", "config.json"):
        shutil.copy(other / name, source / name)
    assert left_out(gqkva, recipe, *work, "--set", "gkv=1", "--set", "evaluate.length=16") == [False, False]
    assert left_out(gqkva, recipe, *work, "--from", "evaluate") == [False, False]
    assert left_out(gqkva, recipe, *work, "--from", "evaluate") == [True, False]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_data_named_with_a_split_are_followed(gqkva: Run, recipe: Path, tmp_path: Path) -> None:
    """A folder whose files change is measured on again, though its name has a split behind it."""
    (tmp_path / "parts").mkdir()
    learners.write_texts(tmp_path / "parts" / "test.jsonl", 8)
    recipe.write_text(recipe.read_text().replace(str(tmp_path / "texts.jsonl"), f"'{tmp_path}/parts[test]'"))
    work = ("--work", tmp_path / "work", "--set", "evaluate.column=text")
    assert left_out(gqkva, recipe, *work) == [False, False]
    assert left_out(gqkva, recipe, *work) == [True, True]
    learners.write_texts(tmp_path / "parts" / "test.jsonl", 9)
    assert left_out(gqkva, recipe, *work) == [True, False]


def test_the_log_makes_the_same_again(gqkva: Run, recipe: Path, tmp_path: Path) -> None:
    """The commands, run by a shell elsewhere, write the same bytes."""
    assert left_out(gqkva, recipe, "--work", tmp_path / "work") == [False, False]
    script = (tmp_path / "work" / "commands.sh").read_text()
    again = script.replace(str(tmp_path / "work"), str(tmp_path / "again"))
    assert again != script
    line = next(line for line in again.splitlines() if line.startswith("gqkva convert"))
    result = gqkva(*line.split()[1:])
    assert result.exit_code == 0, result.stderr
    first, second = (
        (tmp_path / name / "gqa" / "model.safetensors").read_bytes() for name in ("work", "again")
    )
    assert first == second
    assert subprocess.run(["bash", "-n", tmp_path / "work" / "commands.sh"], check=False).returncode == 0


def test_a_step_that_fails_keeps_what_was_done(gqkva: Run, recipe: Path, tmp_path: Path) -> None:
    work = ("--work", tmp_path / "work")
    result = gqkva("run", recipe, *work, "--set", "evaluate.data=no.jsonl")
    assert result.exit_code == 11
    assert "no.jsonl does not exist" in result.stderr
    assert left_out(gqkva, recipe, *work) == [True, False]


def test_nothing_that_others_made_is_replaced(gqkva: Run, recipe: Path, tmp_path: Path) -> None:
    """A recipe writes over its own results alone."""
    folder = tmp_path / "work" / "gqa"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    result = gqkva("run", recipe, "--work", tmp_path / "work")
    assert result.exit_code == 7
    assert "already exists" in result.stderr
    assert (folder / "config.json").read_text() == "{}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run_folder", "any_model"),
    [(None, False), ("elsewhere", False), (None, True)],
    ids=["beside", "elsewhere", "any-model"],
)
def test_an_interrupted_training_step_goes_on(
    run_folder: str | None, any_model: bool, recipe: Path, source: Path, tmp_path: Path
) -> None:
    """SIGINT in the middle, then the same command: training goes on from its checkpoint, wherever that is."""
    data = learners.write_texts(tmp_path / "more.jsonl", 400)
    with recipe.open("a") as file:
        file.write(
            f"  - uptrain: {{folder: '{source if any_model else '${work}/gqa'}', teacher: {source}, "
            f"any_model: {str(any_model).lower()}, out: '${{work}}/out', data: {data}, "
            "tokens: 200k, length: 32, batch_size: 8, others: {evaluation_steps: 20}"
            + (f", run_folder: '${{work}}/{run_folder}'}}\n" if run_folder else "}\n")
        )
    command = [sys.executable, "-m", "gqkva_convert", "run", str(recipe), "--work", str(tmp_path / "work")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "work" / (run_folder or "out-run") / "metrics.jsonl"
    for _ in range(1200):
        if metrics.is_file() and len(metrics.read_text().splitlines()) > 5:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0, said
    assert not (tmp_path / "work" / "out").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    state = json.loads((tmp_path / "work" / "run.json").read_text())["steps"]
    assert state["uptrain"]["command"].endswith("--resume")
    assert (tmp_path / "work" / "out" / "config.json").is_file()


def test_measurements_are_missed_one_by_one(gqkva: Run, recipe: Path, tmp_path: Path) -> None:
    """Two steps measure one folder: what each wrote into the common file must be in it."""
    more = learners.write_texts(tmp_path / "more.jsonl", 20)
    with recipe.open("a") as file:
        file.write(f"  - name: more\n    evaluate: {{model: '${{work}}/gqa', data: {more}, length: 32}}\n")
    work = ("--work", tmp_path / "work")
    assert left_out(gqkva, recipe, *work) == [False, False, False]
    assert left_out(gqkva, recipe, *work) == [True, True, True]
    path = tmp_path / "work" / "gqa" / "gqkva_evaluation.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "results": whole["results"][1:]}))
    assert left_out(gqkva, recipe, *work) == [True, False, True]
    path.unlink()
    assert left_out(gqkva, recipe, *work) == [True, False, False]


def test_a_step_measured_otherwise_replaces_what_it_measured(
    gqkva: Run, recipe: Path, tmp_path: Path
) -> None:
    """Two results of one step would not be told apart by the comparison behind it."""
    with recipe.open("a") as file:
        file.write("  - compare: {folders: ['${work}/gqa'], metric: [nats per token], out: '${work}/c'}\n")
    work = ("--work", tmp_path / "work")
    for samples in (4, 2):
        changed = ("--set", f"evaluate.samples={samples}")
        assert left_out(gqkva, recipe, *work, *changed) == [samples == 2, False, False]
    (result,) = json.loads((tmp_path / "work" / "gqa" / "gqkva_evaluation.json").read_text())["results"]
    assert result["settings"]["samples"] == 2


def test_the_log_of_several_runs_makes_the_last_again(gqkva: Run, recipe: Path, tmp_path: Path) -> None:
    """What replaced an earlier result replaces it again."""
    with recipe.open() as file:
        text = file.read().replace("half the heads", '"half the heads\\nrm -rf of nothing"')
    recipe.write_text(text)
    for gkv in (2, 1):
        left_out(gqkva, recipe, "--work", tmp_path / "work", "--set", f"gkv={gkv}")
    last = (tmp_path / "work" / "gqa" / "model.safetensors").read_bytes()
    lines = (tmp_path / "work" / "commands.sh").read_text().splitlines()
    shutil.rmtree(tmp_path / "work" / "gqa")
    commands = [line for line in lines if line and not line.startswith("#")]
    assert [line.split()[0] for line in commands] == ["set", *["gqkva"] * 4]
    for line in commands[1:]:
        result = gqkva(*shlex.split(line)[1:])
        assert result.exit_code == 0, result.stderr
    assert (tmp_path / "work" / "gqa" / "model.safetensors").read_bytes() == last


def test_a_recipe_goes_on_from_another_folder(
    gqkva: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is the same however it is called."""
    monkeypatch.chdir(tmp_path)
    assert left_out(gqkva, recipe, "--work", "work") == [False, False]
    assert left_out(gqkva, recipe, "--work", tmp_path / "work") == [True, True]
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert left_out(gqkva, recipe, "--work", "../work", "--set", "gkv=1") == [False, False]


def test_new_questions_are_asked(gqkva: Run, source: Path, tmp_path: Path) -> None:
    """Files that a task names are read by the step that names the task."""
    pytest.importorskip("lm_eval")
    questions = [{"context": "the quick brown", "choices": [" fox", " river"], "label": 0}] * 4
    write_task = runpy.run_path(str(ROOT / "recipes" / "asymgqa" / "make_tasks.py"))["write_task"]
    write_task(tmp_path, "words", questions)
    (tmp_path / "r.yaml").write_text(
        "description: x\nneeds: y\nsteps:\n"
        f"  - evaluate: {{model: {source}, tasks: {tmp_path / 'words.yaml'}}}\n"
    )
    work = ("--work", tmp_path / "work")
    assert [left_out(gqkva, tmp_path / "r.yaml", *work) for _ in range(2)] == [[False], [True]]
    write_task(tmp_path, "words", questions * 2)
    assert left_out(gqkva, tmp_path / "r.yaml", *work) == [False]


def test_what_a_task_includes_is_read(tmp_path: Path) -> None:
    """Tasks that it builds on, and code beside it."""
    from gqkva_convert.recipes.state import _named_in

    (tmp_path / "base.yaml").write_text("dataset_kwargs: {data_files: {test: words.jsonl}}\n")
    (tmp_path / "task.yaml").write_text(
        "include: base.yaml\ntask: words\nprocess_results: !function scoring.score\n"
    )
    found = {Path(name).name for name in _named_in(tmp_path / "task.yaml")}
    assert found == {"base.yaml", "scoring.py", "words.jsonl"}
    (tmp_path / "base.yaml").write_text("include: task.yaml\n")  # for ever, if it were followed
    assert "scoring.py" in {Path(name).name for name in _named_in(tmp_path / "base.yaml")}


def test_models_that_are_no_folder_are_measured_too(gqkva: Run, tmp_path: Path) -> None:
    """Nothing is kept of them, so that they are measured again."""
    data = learners.write_texts(tmp_path / "texts.jsonl", 12)
    (tmp_path / "r.yaml").write_text(
        "description: x\nneeds: y\nsteps:\n"
        f"  - evaluate: {{model: built-in, data: {data}, samples: 2, length: 32}}\n"
    )
    assert left_out(gqkva, tmp_path / "r.yaml", "--work", tmp_path / "work") == [False]


def test_long_texts_are_no_paths(gqkva: Run, source: Path, tmp_path: Path) -> None:
    """A message of more letters than a path has."""
    (tmp_path / "r.yaml").write_text(
        "description: x\nneeds: y\nsteps:\n"
        f"  - convert: {{model: {source}, out: '${{work}}/gqa', gkv: 2}}\n"
        "  - verify: {folder: '${work}/gqa'}\n"
        f"  - push: {{folder: '${{work}}/gqa', repo_id: me/gqa, dry_run: true, message: '{'long ' * 200}'}}\n"
    )
    assert left_out(gqkva, tmp_path / "r.yaml", "--work", tmp_path / "work") == [False] * 3


def test_launched_steps_leave_standard_output_to_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    """With --json the recipe's result is all there; a step in a process of its own writes elsewhere."""

    class Line:
        def launched(self) -> list[str]:
            return [sys.executable, "-c", "print('a table')"]

    with contextlib.redirect_stdout(sys.stderr):
        running._launched(Line())  # type: ignore[arg-type]
    out, err = capfd.readouterr()
    assert (out, err) == ("", "a table\n")


@pytest.mark.slow
def test_a_training_that_replaces_another_goes_on_too(recipe: Path, source: Path, tmp_path: Path) -> None:
    """Cut off while an older result stands: the same command goes on, and then replaces it."""
    data = learners.write_texts(tmp_path / "more.jsonl", 400)
    with recipe.open("a") as file:
        file.write(
            f"  - uptrain: {{folder: '${{work}}/gqa', out: '${{work}}/out', data: {data}, tokens: 1k, "
            "length: 32, batch_size: 8, others: {evaluation_steps: 20}}\n"
        )
    command = [sys.executable, "-m", "gqkva_convert", "run", str(recipe), "--work", str(tmp_path / "work")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    longer = [*command, "--set", "uptrain.tokens=200k"]
    process = subprocess.Popen(longer, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "work" / "out-run" / "metrics.jsonl"
    for _ in range(1200):
        if metrics.is_file() and len(metrics.read_text().splitlines()) > 20:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert (tmp_path / "work" / "out" / "config.json").is_file()
    again = subprocess.run(longer, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    state = json.loads((tmp_path / "work" / "run.json").read_text())["steps"]
    assert state["uptrain"]["command"].endswith("--resume")
    report = json.loads((tmp_path / "work" / "out" / "gqkva_report.json").read_text())
    assert report["uptraining"]["tokens"] >= 200_000
