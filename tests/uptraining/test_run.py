"""Runs: the same result unbroken, interrupted, accumulated, or divided over processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import learners
import pytest
import torch
import transformers
from learners import Lesson
from short_runs import environment, losses, options, settings, train, weights

import gqkva_convert
from gqkva_convert.errors import TrainingError
from gqkva_convert.uptraining.engine import trainer as engine
from gqkva_convert.uptraining.rows.stored import StoredRows
from gqkva_convert.uptraining.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
# Readers of datasets leave files open that are not read to their end; processes that end leave sockets.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class PowerCutError(Exception):
    """The machine goes down."""


@pytest.mark.usefixtures("plots")
def test_training_makes_the_student_answer_like_its_teacher(lesson: Lesson, tmp_path: Path) -> None:
    """The result is a stock checkpoint like the conversion, and its report says what was done."""
    result = train(lesson, tmp_path / "out", tokens=60 * 8 * 16)
    gap = result["held_out_loss_before"] - result["teacher_held_out_loss"]
    assert result["held_out_loss"] - result["teacher_held_out_loss"] < 0.5 * gap
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {path.name for path in lesson.student.iterdir()} == {p.name for p in (tmp_path / "out").iterdir()}
    before, after = weights(lesson.student), weights(tmp_path / "out")
    assert {name: (t.dtype, t.shape) for name, t in before.items()} == {
        name: (t.dtype, t.shape) for name, t in after.items()
    }
    report = json.loads((tmp_path / "out" / "gqkva_report.json").read_text())["uptraining"]
    assert report["tokens"] == 60 * 8 * 16
    assert report["held_out_loss"] == result["held_out_loss"]
    run = tmp_path / "out-run"
    assert (run / "loss.png").stat().st_size > 5000
    assert not (run / "checkpoints").exists()
    assert gqkva_convert.verify(tmp_path / "out")["passed"]
    assert gqkva_convert.verify(tmp_path / "out", lesson.teacher)["passed"]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"per_device_batch_size": 4},
        {"streaming": True},
        {"tokens": 4 * 8 * 16, "num_train_epochs": 3, "resample": 0.3},
        pytest.param({"train": "lora", "matching": 0.0}, marks=pytest.mark.slow),
        {"ema": 0.9, "loss": "task=1,hidden=0.1,attention=0.1"},
    ],
    ids=["plain", "accumulated", "streamed", "epochs-resampled", "lora", "averaged"],
)
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(
    changed: dict[str, Any], lesson: Lesson, tmp_path: Path
) -> None:
    """In the middle of an epoch, between checkpoints, after losing everything since the last."""
    if changed.get("streaming"):
        lesson = Lesson(lesson.teacher, lesson.student, learners.write_texts(tmp_path / "t.jsonl", 40))
    train(lesson, tmp_path / "unbroken", **changed)

    def cut(entry: dict[str, Any]) -> None:
        if entry.get("step") == 5 and "loss" in entry:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        gqkva_convert.uptrain(lesson.student, tmp_path / "broken", settings(lesson, **changed), watch=cut)
    assert not (tmp_path / "broken").exists()
    latest = RunFolder(tmp_path / "broken-run").latest()
    assert latest is not None
    assert latest.name == "step-000000003"
    gqkva_convert.uptrain(lesson.student, tmp_path / "broken", resume=True)
    assert losses(tmp_path / "broken-run") == losses(tmp_path / "unbroken-run")
    found, wanted = weights(tmp_path / "broken"), weights(tmp_path / "unbroken")
    assert all(found[name].equal(tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("budget", [{"tokens": 32 * 16}, {"samples": 32}], ids=["tokens", "samples"])
def test_epochs_go_over_the_rows_of_the_budget_again(
    budget: dict[str, int], lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row of the budget as often as asked, and no other, although the data hold more."""
    used: list[int] = []
    row = StoredRows.row

    def noted(self: StoredRows, number: int) -> Any:
        found = row(self, number)
        used.append(found["row"])
        return found

    monkeypatch.setattr(StoredRows, "row", noted)
    given = {"tokens": None, **budget, "num_train_epochs": 3, "held_out": str(lesson.data)}
    result = train(lesson, tmp_path / "out", **given)
    assert (result["steps"], result["tokens"]) == (12, 3 * 32 * 16)
    assert Counter(used) == dict.fromkeys(range(32), 3)


def test_accumulated_steps_are_the_large_batch(lesson: Lesson, tmp_path: Path) -> None:
    """Although its parts hold different numbers of labels."""
    changed = {"loss": "task=0.5,kl=1,hidden=0.1,attention=0.1", "packing": False, "resample": 0.2}
    whole = train(lesson, tmp_path / "whole", **changed)
    parts = train(lesson, tmp_path / "parts", **changed, per_device_batch_size=2)
    assert losses(tmp_path / "parts-run") == pytest.approx(losses(tmp_path / "whole-run"), rel=1e-5)
    assert parts["held_out_loss"] == pytest.approx(whole["held_out_loss"], rel=1e-5)


def test_a_model_that_is_no_conversion_is_gone_on_with(lesson: Lesson, tmp_path: Path) -> None:
    """The run remembers what it was allowed."""

    def cut(entry: dict[str, Any]) -> None:
        if entry.get("step") == 5 and "loss" in entry:
            raise PowerCutError

    given = settings(lesson)
    with pytest.raises(PowerCutError):
        gqkva_convert.uptrain(lesson.teacher, tmp_path / "out", given, watch=cut, any_model=True)
    gqkva_convert.uptrain(lesson.teacher, tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "gqkva_training.json").is_file()


def test_batches_made_ahead_are_the_same(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside a GPU: interrupted or not, to the bit; and what fails while a batch is made is said."""
    changed = {"per_device_batch_size": 4, "matching": 0.3}
    train(lesson, tmp_path / "one", **changed)
    asked = []
    monkeypatch.setattr(engine, "prepares_ahead", lambda device: asked.append(device) or True)
    train(lesson, tmp_path / "ahead", **changed)
    assert asked
    assert losses(tmp_path / "ahead-run") == losses(tmp_path / "one-run")

    def cut(entry: dict[str, Any]) -> None:
        if entry.get("step") == 5 and "loss" in entry:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        gqkva_convert.uptrain(lesson.student, tmp_path / "broken", settings(lesson, **changed), watch=cut)
    gqkva_convert.uptrain(lesson.student, tmp_path / "broken", resume=True)
    assert losses(tmp_path / "broken-run") == losses(tmp_path / "one-run")


def start(lesson: Lesson, tmp_path: Path, **changed: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gqkva_convert", "uptrain", str(lesson.student), str(tmp_path / "out")]
    command += options(lesson, tmp_path, **changed)
    return subprocess.Popen(
        command, env=environment(tmp_path), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def wait_for_step(run: Path, step: int) -> None:
    for _ in range(1200):
        if (run / "metrics.jsonl").is_file() and len(losses(run)) >= step:
            return
        time.sleep(0.05)
    pytest.fail(f"step {step} was never reached")


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_stopped_run_saves_and_goes_on(sent: int, code: int, lesson: Lesson, tmp_path: Path) -> None:
    """Ctrl-C and a pre-empted node: one line, the documented exit code, nothing lost."""
    process = start(lesson, tmp_path, tokens=400 * 8 * 16, evaluation_steps=1000)
    wait_for_step(tmp_path / "out-run", 3)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert b"continue with --resume" in stderr
    assert b"Traceback" not in stderr
    done = len(losses(tmp_path / "out-run"))
    latest = RunFolder(tmp_path / "out-run").latest()
    assert latest is not None
    assert latest.name == f"step-{done:09d}"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(lesson: Lesson, tmp_path: Path) -> None:
    """SIGKILL at any moment: metrics of lost steps are forgotten, and the rest is the unbroken run."""
    changed = {"tokens": 60 * 8 * 16, "evaluation_steps": 7, "per_device_batch_size": 4}
    train(lesson, tmp_path / "unbroken", **changed)
    process = start(lesson, tmp_path, **changed)
    wait_for_step(tmp_path / "out-run", 17)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out").exists()
    gqkva_convert.uptrain(lesson.student, tmp_path / "out", resume=True)
    assert losses(tmp_path / "out-run") == losses(tmp_path / "unbroken-run")
    found, wanted = weights(tmp_path / "out"), weights(tmp_path / "unbroken")
    assert all(found[name].equal(tensor) for name, tensor in wanted.items())


def test_losses_that_are_not_finite_are_left_out_and_end_the_run(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights never take them in; after too many the run says where its last good state is."""
    from gqkva_convert.uptraining.objectives import losses as module

    real, calls = module.teacher_divergence, {"count": 0}

    def broken(*arguments: Any) -> torch.Tensor:
        calls["count"] += 1
        bad = calls["count"] in (2, 4)
        return real(*arguments) * float("nan") if bad else real(*arguments)

    monkeypatch.setattr("gqkva_convert.uptraining.objectives.objective.teacher_divergence", broken)
    result = train(lesson, tmp_path / "out", matching=0.0, nan_limit=3)
    assert result["steps_left_out"] == 2
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out").values())
    calls["count"] = 0
    with pytest.raises(TrainingError, match="2 steps were not finite and left out; the last good state is"):
        train(lesson, tmp_path / "other", matching=0.0, nan_limit=2)
    assert not (tmp_path / "other").exists()


def test_endless_overflow_of_fp16_stops_a_run(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night of steps that are all left out would be wasted; single ones are how its scaler works."""
    from accelerate import Accelerator

    from gqkva_convert.uptraining.engine.stepper import Stepper
    from gqkva_convert.uptraining.engine.trainer import OVERFLOW_LIMIT

    norms = iter([*[1.0, float("inf")] * 5, *[float("inf")] * 1000])
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    monkeypatch.setattr(Stepper, "_clipped", lambda self: next(norms))
    with pytest.raises(TrainingError, match=f"overflowed in {OVERFLOW_LIMIT} steps one after the other"):
        train(lesson, tmp_path / "out", tokens=400 * 8 * 16, matching=0.0, evaluation_steps=1000)


def test_a_run_stops_when_it_is_close_enough(lesson: Lesson, tmp_path: Path) -> None:
    result = train(lesson, tmp_path / "out", tokens=400 * 8 * 16, stop_within="50%")
    assert result["steps"] <= 3
    assert result["held_out_loss"] <= 1.5 * result["teacher_held_out_loss"]


def test_checkpoints_are_the_last_ones_and_the_best(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where held-out losses rise again, the result is the best, not the last."""
    from gqkva_convert.uptraining.engine.trainer import Trainer

    kept: list[set[str]] = []
    measured = iter([9, 1, 8, 7, 3, 4, 5, 5, 5, 5, 5, 5])
    monkeypatch.setattr(Trainer, "measured", lambda self, objective, plain: float(next(measured)))

    def look(entry: dict[str, Any]) -> None:
        folder = tmp_path / "out-run" / "checkpoints"
        if entry.get("step") == 9 and "loss" in entry:
            kept.append({path.name for path in folder.iterdir()})

    changed = {"matching": 0.0, "evaluation_steps": 1, "save_total_limit": 2}
    result = gqkva_convert.uptrain(lesson.student, tmp_path / "out", settings(lesson, **changed), watch=look)
    assert (result["kept_step"], result["held_out_loss"]) == (3, 3.0)
    assert kept == [{"step-000000003", "step-000000007", "step-000000008"}]
    assert result["steps"] == 10


def test_recomputed_activations_change_nothing(lesson: Lesson, tmp_path: Path) -> None:
    """Blocks are watched in the forward pass alone, not when they run again in the backward pass."""
    terms = "kl=1,hidden=0.1,attention=0.1"
    train(lesson, tmp_path / "kept", loss=terms)
    train(lesson, tmp_path / "recomputed", loss=terms, gradient_checkpointing=True)
    assert losses(tmp_path / "recomputed-run") == pytest.approx(losses(tmp_path / "kept-run"), rel=1e-5)


def test_bfloat16_learns_as_float32(lesson: Lesson, tmp_path: Path) -> None:
    exact = train(lesson, tmp_path / "exact", tokens=40 * 8 * 16)
    mixed = train(lesson, tmp_path / "mixed", tokens=40 * 8 * 16, mixed_precision="bf16")
    assert losses(tmp_path / "mixed-run")[0] == pytest.approx(losses(tmp_path / "exact-run")[0], rel=0.05)
    lost = exact["held_out_loss_before"] - exact["held_out_loss"]
    assert mixed["held_out_loss"] == pytest.approx(exact["held_out_loss"], abs=0.2 * lost)
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "mixed").values())


@pytest.mark.slow
def test_a_compiled_student_learns_the_same(lesson: Lesson, tmp_path: Path) -> None:
    train(lesson, tmp_path / "plain")
    train(lesson, tmp_path / "compiled", torch_compile=True)
    assert losses(tmp_path / "compiled-run") == pytest.approx(losses(tmp_path / "plain-run"), rel=1e-3)


@pytest.mark.parametrize(
    ("package", "changed"),
    [
        ("bitsandbytes", {"optim": "adamw_8bit"}),
        ("liger_kernel", {"liger": True}),
        ("peft", {"train": "lora", "matching": 0.0}),
    ],
)
def test_packages_that_are_not_there_are_named(
    package: str, changed: dict[str, Any], lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what to leave out instead."""
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TrainingError, match=f"needs the package {package.replace('_', '-')}; pip install"):
        train(lesson, tmp_path / "out", **changed)


def test_trackers_see_every_step(lesson: Lesson, tmp_path: Path) -> None:
    """TensorBoard through Accelerate."""
    pytest.importorskip("tensorboard")
    gqkva_convert.uptrain(lesson.student, tmp_path / "out", settings(lesson), report_to=("tensorboard",))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "out-run" / "gqkva"))
    found.Reload()
    assert {"loss", "held_out_loss", "learning_rate"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("loss")] == list(range(1, 11))


def test_a_run_that_only_does_harm_says_so(lesson: Lesson, tmp_path: Path) -> None:
    """What is reported is the loss of the weights that were written."""
    result = train(lesson, tmp_path / "out", matching=0.0, learning_rate=1.0, evaluation_steps=10)
    assert result["held_out_loss"] > result["held_out_loss_before"]
    assert result["kept_step"] == 10


@pytest.mark.parametrize("changed", ["data", "held_out"])
def test_a_stream_goes_on_only_with_the_same_data(changed: str, lesson: Lesson, tmp_path: Path) -> None:
    """Nothing of it is prepared, and what it is measured on counts as well."""
    files = {name: learners.write_texts(tmp_path / f"{name}.jsonl") for name in ("data", "held_out")}
    values = {name: str(file) for name, file in files.items()}

    def cut(entry: dict[str, Any]) -> None:
        if entry.get("step") == 5 and "loss" in entry:
            raise PowerCutError

    asked = settings(lesson, streaming=True, **values)
    with pytest.raises(PowerCutError):
        gqkva_convert.uptrain(lesson.student, tmp_path / "out", asked, watch=cut)
    files[changed].write_text(files[changed].read_text().replace("fox", "cat"))
    with pytest.raises(TrainingError, match="the data have changed since"):
        gqkva_convert.uptrain(lesson.student, tmp_path / "out", resume=True)


def test_a_run_goes_on_only_as_it_was(lesson: Lesson, tmp_path: Path) -> None:
    """Other data, or a run that is done: a line, and nothing is lost."""
    data = learners.write_texts(tmp_path / "texts.jsonl")
    lesson = Lesson(lesson.teacher, lesson.student, data)

    def cut(entry: dict[str, Any]) -> None:
        if entry.get("step") == 5 and "loss" in entry:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        gqkva_convert.uptrain(lesson.student, tmp_path / "out", settings(lesson), watch=cut)
    text = data.read_text()
    data.write_text(text.replace("fox", "cat"))
    with pytest.raises(TrainingError, match="the data have changed since"):
        gqkva_convert.uptrain(lesson.student, tmp_path / "out", resume=True)
    data.write_text(text)
    os.utime(data, ns=(0, 0))
    with pytest.raises(TrainingError, match="the data have changed since"):
        gqkva_convert.uptrain(lesson.student, tmp_path / "out", resume=True)


def test_a_finished_run_does_not_go_on(lesson: Lesson, tmp_path: Path) -> None:
    train(lesson, tmp_path / "out")
    found = losses(tmp_path / "out-run")
    with pytest.raises(TrainingError, match="is finished; its result was written to"):
        gqkva_convert.uptrain(lesson.student, tmp_path / "out", resume=True)
    assert losses(tmp_path / "out-run") == found


def test_a_second_training_keeps_the_record_of_the_first(lesson: Lesson, tmp_path: Path) -> None:
    """What a model cost is the sum of both."""
    train(lesson, tmp_path / "one")
    again = settings(lesson, tokens=2 * 8 * 16)
    gqkva_convert.uptrain(tmp_path / "one", tmp_path / "two", again)
    first, second = (
        json.loads((tmp_path / name / "gqkva_report.json").read_text()) for name in ("one", "two")
    )
    assert second["uptraining"]["tokens"] == 2 * 8 * 16
    assert second["uptraining_before"] == [first["uptraining"]]
    assert "uptraining_before" not in first


def test_layers_are_sharded_one_by_one(lesson: Lesson) -> None:
    """FSDP goes by these names; LoRA's wrapper must not hide them."""
    from gqkva_convert.uptraining.objectives.objective import Objective
    from gqkva_convert.uptraining.trainable import add_lora

    model = transformers.AutoModelForCausalLM.from_pretrained(lesson.student)
    assert Objective(model, "causal-lm", {"task": 1.0})._no_split_modules == ["LlamaDecoderLayer"]
    assert Objective(add_lora(model, 2), "causal-lm", {"task": 1.0})._no_split_modules == [
        "LlamaDecoderLayer"
    ]


@pytest.mark.parametrize("trained", ["attention", "kv", "lora"])
def test_only_what_is_asked_for_is_trained(trained: str, lesson: Lesson, tmp_path: Path) -> None:
    """Weights outside keep their bytes; LoRA is merged, so that the result has the same tensors."""
    matching = 0.3 if trained == "attention" else 0.0
    train(lesson, tmp_path / "out", train=trained, matching=matching)
    before, after = weights(lesson.student), weights(tmp_path / "out")
    changed = {name.split(".")[-2] for name in before if not before[name].equal(after[name])}
    all_four = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert changed == ({"k_proj", "v_proj"} if trained == "kv" else all_four)


def test_matching_trains_each_block_for_itself(lesson: Lesson, tmp_path: Path) -> None:
    """No gradient reaches anything but attention, and every block comes closer to the teacher's."""
    train(lesson, tmp_path / "out", matching=1.0, tokens=40 * 8 * 16)
    before, after = weights(lesson.student), weights(tmp_path / "out")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert len(changed) == 2 * 4
    assert all("self_attn" in name for name in changed)
    found = losses(tmp_path / "out-run")
    assert found[-2] < 0.5 * found[0]


def test_a_written_down_teacher_teaches_the_same(lesson: Lesson, tmp_path: Path) -> None:
    """With all tokens kept, the losses are those beside the teacher, up to float16."""
    chosen = settings(lesson, matching=0.0)
    written = gqkva_convert.teacher(
        str(lesson.teacher), tmp_path / "logits", chosen.model_copy(update={"teacher": None}), top_k=4096
    )
    result = train(lesson, tmp_path / "beside", matching=0.0)
    stored = train(lesson, tmp_path / "stored", matching=0.0, teacher=str(tmp_path / "logits"))
    assert written["held_out_loss"] == pytest.approx(result["teacher_held_out_loss"], abs=1e-5)
    assert losses(tmp_path / "stored-run") == pytest.approx(losses(tmp_path / "beside-run"), abs=2e-4)
    assert stored["held_out_loss"] == pytest.approx(result["held_out_loss"], abs=1e-3)
    few = gqkva_convert.teacher(
        str(lesson.teacher), tmp_path / "few", chosen.model_copy(update={"teacher": None}), top_k=16
    )
    assert few["bytes"] < written["bytes"] / 100
    with pytest.raises(TrainingError, match="was made for other rows"):
        train(lesson, tmp_path / "no", matching=0.0, teacher=str(tmp_path / "few"), seed=1)
    with pytest.raises(TrainingError, match="needs the teacher itself"):
        train(lesson, tmp_path / "no", teacher=str(tmp_path / "few"))
