"""Runs divided over processes, as `accelerate launch` starts them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import Lesson
from short_runs import environment, losses, options, train, weights

from gqkva_convert.errors import TrainingError

ROOT = Path(__file__).parents[2]
# Readers of datasets leave files open that are not read to their end; processes that end leave sockets.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
# FSDP2 divides the rows as DDP does.
DDP = pytest.param("ddp.yaml", marks=pytest.mark.slow)
# Where there is no GPU it compiles a part of itself when it first runs, which takes minutes.
ZERO2 = pytest.param("zero2.yaml", marks=pytest.mark.slow)


def require(config: str) -> None:
    """Skip what needs a package that is not there."""
    if config == "zero2.yaml" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs gqkva-convert[deepspeed]")


def launch(
    config: str,
    lesson: Lesson,
    out: Path,
    *more: str,
    told: Sequence[str] = (),
    program: Sequence[str] = ("-m", "gqkva_convert"),
) -> None:
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(ROOT / "recipes/accelerate" / config), "--num_processes", "2"]
    command += ["--mixed_precision", "no", "--main_process_port", "0", *told]
    command += [*program, "uptrain", str(lesson.student), str(out), *more]
    subprocess.run(command, check=True, env=environment(out.parent), capture_output=True, timeout=300)


@pytest.mark.parametrize("config", ["fsdp2.yaml", DDP, ZERO2])
def test_two_processes_give_the_loss_of_one(config: str, lesson: Lesson, tmp_path: Path) -> None:
    """Each has half the rows; in float32, over gloo, within 1e-5. FSDP2 shards the weights, too.

    The default run starts two processes once, under FSDP2.
    """
    require(config)
    changed = {"resample": 0.2}
    train(lesson, tmp_path / "one", **changed)
    launch(config, lesson, tmp_path / "two", *options(lesson, tmp_path, **changed))
    assert losses(tmp_path / "two-run") == pytest.approx(losses(tmp_path / "one-run"), abs=1e-5)
    found, wanted = weights(tmp_path / "two"), weights(tmp_path / "one")
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
    report = json.loads((tmp_path / "two" / "gqkva_report.json").read_text())["uptraining"]
    assert report["processes"] == 2


CONFIGS = sorted(path.name for path in (ROOT / "recipes/accelerate").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS)
def test_configurations_are_accelerates(config: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(ROOT / "recipes/accelerate" / config)).num_processes > 1


def test_what_accelerate_would_do_otherwise_is_refused(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than left out, or done in a way that breaks losses."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    with pytest.raises(TrainingError, match="give torch_compile"):
        train(lesson, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options_of_launch", "setting", "message"),
    [
        (["--zero_stage", "3"], {}, "ZeRO stage 3: stages 1 and 2 are known to work"),
        (["--offload_optimizer_device", "cpu"], {}, "offload_optimizer has not been tried"),
        ([], {"ema": 0.9}, "ema is not kept under DeepSpeed"),
    ],
)
def test_what_deepspeed_was_not_tried_with_is_refused(
    options_of_launch: list[str], setting: dict[str, Any], message: str, lesson: Lesson, tmp_path: Path
) -> None:
    require("zero2.yaml")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        launch(
            "zero2.yaml",
            lesson,
            tmp_path / "out",
            *options(lesson, tmp_path, **setting),
            told=options_of_launch,
        )
    assert message in failed.value.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "2"])
def test_deepspeed_accumulates_in_bfloat16(stage: str, lesson: Lesson, tmp_path: Path) -> None:
    """Four passes a step; what is written has the exact weights."""
    require("zero2.yaml")
    told = ["--zero_stage", stage, "--mixed_precision", "bf16"]
    given = options(lesson, tmp_path, per_device_batch_size=1)
    launch("zero2.yaml", lesson, tmp_path / "two", *given, told=told)
    train(lesson, tmp_path / "one", mixed_precision="bf16")
    assert losses(tmp_path / "two-run") == pytest.approx(losses(tmp_path / "one-run"), rel=0.1, abs=0.02)
    report = json.loads((tmp_path / "two" / "gqkva_report.json").read_text())["uptraining"]
    assert report["held_out_loss"] < report["held_out_loss_before"]
    assert any(
        bool((value.bfloat16().float() != value).any()) for value in weights(tmp_path / "two").values()
    )


@pytest.mark.slow
def test_deepspeed_leaves_out_steps_that_are_not_finite(lesson: Lesson, tmp_path: Path) -> None:
    """It steps by itself; weights and moments stay as they were all the same."""
    require("zero2.yaml")
    script = tmp_path / "broken.py"
    script.write_text(
        "import gqkva_convert.uptraining.engine.trainer as engine\n"
        "old = engine.make_stepper\n"
        "def make_stepper(accelerator, *arguments):\n"
        "    backward, calls = accelerator.backward, []\n"
        "    def broken(loss):\n"
        "        calls.append(1)\n"
        "        backward(loss * float('nan') if len(calls) == 5 else loss)\n"
        "    accelerator.backward = broken\n"
        "    return old(accelerator, *arguments)\n"
        "engine.make_stepper = make_stepper\n"
        "from gqkva_convert.cli import app\n"
        "app()\n"
    )
    launch("zero2.yaml", lesson, tmp_path / "two", *options(lesson, tmp_path), program=[str(script)])
    report = json.loads((tmp_path / "two" / "gqkva_report.json").read_text())["uptraining"]
    assert report["steps_left_out"] == 1
    assert report["held_out_loss"] < report["held_out_loss_before"]
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path / "two").values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", [name for name in CONFIGS if name != "cpu.yaml"])
def test_configurations_start_on_a_gpu(config: str, lesson: Lesson, tmp_path: Path) -> None:
    """In bfloat16, one process."""
    require(config)
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "1"]
    command += ["--config_file", str(ROOT / "recipes/accelerate" / config)]
    command += ["-m", "gqkva_convert", "uptrain", str(lesson.student), str(tmp_path / "out")]
    command += options(lesson, tmp_path)
    shown = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert shown.returncode == 0, shown.stderr
    report = json.loads((tmp_path / "out" / "gqkva_report.json").read_text())["uptraining"]
    assert report["device"].startswith("cuda")
    assert report["held_out_loss"] < report["held_out_loss_before"]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["fsdp2.yaml", "zero2.yaml"])
def test_sharded_runs_go_on_after_a_stop(config: str, lesson: Lesson, tmp_path: Path) -> None:
    """A checkpoint of shards is one: the rest of the run is the unbroken one's."""
    require(config)
    launch(config, lesson, tmp_path / "whole", *options(lesson, tmp_path))
    script = tmp_path / "cut.py"
    script.write_text(
        "import gqkva_convert.uptraining.engine.trainer as engine\n"
        "old = engine.Trainer._step\n"
        "def step(self):\n"
        "    if self.progress.step == 5: raise SystemExit(3)\n"
        "    old(self)\n"
        "engine.Trainer._step = step\n"
        "from gqkva_convert.cli import app\n"
        "app()\n"
    )
    with pytest.raises(subprocess.CalledProcessError):
        launch(config, lesson, tmp_path / "cut", *options(lesson, tmp_path), program=[str(script)])
    launch(config, lesson, tmp_path / "cut", "--resume")
    assert losses(tmp_path / "cut-run") == pytest.approx(losses(tmp_path / "whole-run"), abs=1e-6)
