"""Training runs of ten steps, here or in processes of their own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from learners import Lesson
from safetensors.torch import load_file

import gqkva_convert
from gqkva_convert.uptraining.settings import TrainingSettings


def settings(lesson: Lesson, **changed: Any) -> TrainingSettings:
    values = {
        "data": str(lesson.data),
        "teacher": str(lesson.teacher),
        "length": 16,
        "tokens": 10 * 8 * 16,
        "batch_size": 8,
        "held_out_rows": 8,
        "learning_rate": 1e-2,
        "matching": 0.3,
        "matching_learning_rate": 1e-2,
        "evaluation_steps": 3,
        **changed,
    }
    return TrainingSettings(**{name: value for name, value in values.items() if value is not None})


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def train(lesson: Lesson, out: Path, **changed: Any) -> dict[str, Any]:
    return gqkva_convert.uptrain(lesson.student, out, settings(lesson, **changed))


def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GQKVA_CACHE": str(tmp_path / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
    }


def options(lesson: Lesson, tmp_path: Path, **changed: Any) -> list[str]:
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps(settings(lesson, **changed).model_dump(exclude_defaults=True)))
    return ["--settings", str(file)]
