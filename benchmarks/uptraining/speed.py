"""Tokens per second of our training and of transformers' `Trainer`."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from machine import describe_machine

import gqkva_convert
from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.uptraining.rows.maker import RowMaker
from gqkva_convert.uptraining.rows.stored import stored_rows
from gqkva_convert.uptraining.settings import TrainingSettings
from uptraining.library import WINDOW, write_library

# Kinds of runs with a teacher of the same size, and their settings.
_TAUGHT: dict[str, dict[str, Any]] = {
    "distilled": {"matching": 0.0},
    "resampled": {"matching": 0.0, "resample": 0.2},
}


def speed(arguments: argparse.Namespace, results: dict[str, Any], save: Any) -> None:
    """Measure tokens per second of ours and of transformers' Trainer, in turn."""
    is_gpu = torch.cuda.is_available()
    with TemporaryDirectory(prefix="gqkva-uptrain-") as name:
        folder = Path(name)
        train, _ = write_library(folder)
        source, length, batch = MODEL, WINDOW, 32
        if is_gpu:
            source, length, batch = _large(folder), 2048, 8
        kinds = ("trainer", "ours", *_TAUGHT)
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds):
            for kind in kinds:
                command = [sys.executable, sys.argv[0], "one", "--kind", kind, "--model", str(source)]
                command += ["--data", str(train), "--length", str(length), "--batch", str(batch)]
                shown = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
                found[kind].append(float(shown.stdout.strip().splitlines()[-1]))
                print(kind, found[kind][-1], flush=True)
        medians = {kind: statistics.median(values) for kind, values in found.items()}
        results["gpu" if is_gpu else "cpu"] = {
            **{"runs": found, "length": length, "batch": batch},
            "ours / trainer": medians["ours"] / medians["trainer"],
            **{f"time {kind} / plain": medians["ours"] / medians[kind] for kind in _TAUGHT},
            "machine": describe_machine(Path.cwd()),
            "date": str(datetime.date.today()),
        }
        save()


def _large(folder: Path) -> Path:
    """Write a Llama of about 1B parameters with the built-in model's tokenizer."""
    config = {
        **{"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "vocab_size": 32000},
        **{"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 2048},
    }
    (folder / "large.json").write_text(json.dumps(config))
    out = folder / "large"
    gqkva_convert.init("llama", out, gkv=8, config=folder / "large.json", dtype="bfloat16")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, out / name)
    return out


def one(arguments: argparse.Namespace) -> None:
    """Time one run in a fresh process; its last line is tokens per second, without the first steps."""
    warm, steps = 3, 12
    if arguments.kind == "trainer":
        print(_with_trainer(arguments, warm, steps))
        return
    precision = "bf16" if torch.cuda.is_available() else "no"
    times: list[float] = []
    with TemporaryDirectory(prefix="gqkva-uptrain-") as name:
        settings = TrainingSettings(
            data=arguments.data,
            length=arguments.length,
            batch_size=arguments.batch,
            tokens=arguments.batch * arguments.length * steps,
            held_out_rows=1,
            evaluation_steps=10**9,
            save_steps=10**9,
            mixed_precision=precision,
            learning_rate=1e-5,
            packing=True,
            **_TAUGHT.get(arguments.kind, {}),
            teacher=arguments.model if arguments.kind in _TAUGHT else None,
        )

        def watch(entry: dict[str, Any]) -> None:
            if "loss" in entry:
                times.append(entry["tokens"] / entry["tokens_per_second"] / entry["step"])

        gqkva_convert.uptrain(arguments.model, Path(name) / "out", settings, any_model=True, watch=watch)
    print(arguments.batch * arguments.length / statistics.median(times[warm:]))


def _with_trainer(arguments: argparse.Namespace, warm: int, steps: int) -> float:
    """Train with transformers' Trainer on the same rows."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    rows = stored_rows(
        RowMaker("causal-lm", tokenizer, arguments.length, arguments.data, packing=True),
        wanted_tokens=arguments.batch * arguments.length * steps,
        held_out=1,
        seed=0,
    )
    data = [
        {"input_ids": ids, "labels": ids}
        for ids in (list(map(int, rows.row(n)["input_ids"])) for n in range(arguments.batch * steps))
    ]
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *given: Any, **more: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    is_gpu = torch.cuda.is_available()
    with TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32),
            args=transformers.TrainingArguments(
                folder,
                per_device_train_batch_size=arguments.batch,
                max_steps=steps,
                learning_rate=1e-5,
                bf16=is_gpu,
                use_cpu=not is_gpu,
                optim="adamw_torch_fused",
                report_to=[],
                save_strategy="no",
                logging_steps=10**9,
                disable_tqdm=True,
            ),
            train_dataset=data,
            callbacks=[Clock()],
        )
        trainer.train()
    gaps = [after - before for before, after in zip(times[warm:], times[warm + 1 :], strict=False)]
    return arguments.batch * arguments.length / statistics.median(gaps)
