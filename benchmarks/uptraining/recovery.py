"""Held-out losses by tokens, and the result of one percent of pre-training."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from machine import describe_machine

import gqkva_convert
from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.uptraining.quantities import parse_count
from gqkva_convert.uptraining.settings import TrainingSettings
from uptraining.arms import BUDGETS, CALIBRATION_WINDOWS, CURVES, Arm
from uptraining.library import WINDOW, write_library, write_windows

PRETRAINING_TOKENS = 30_998_528
MODEL_HEADS = 8
BATCH = 8
# Tokens of the stage that matches blocks, in the curve that has one.
MATCHING_TOKENS = 131_072


def curves(arguments: argparse.Namespace, results: dict[str, Any], save: Any) -> None:
    """Measure held-out losses by tokens, each arm's from one run."""
    budget, schedule = parse_count(arguments.tokens), arguments.lr_scheduler_type
    # A constant rate gives the losses of all budgets at once; a mean of the weights replaces its decay.
    settings = {"lr_scheduler_type": schedule, "ema": 0.99 if schedule == "constant" else None}
    with _work_folder(arguments) as folder:
        train, held_out = write_library(folder)
        for seed in _numbers(arguments.seeds):
            for name, arm in CURVES.items():
                shown = name if schedule == "constant" else f"{name}, {schedule} {arguments.tokens}"
                key = f"{shown}|{arguments.heads}|{seed}"
                if key in results or (arguments.only and name not in arguments.only.split(";")):
                    continue
                student = convert(arm, arguments.heads, seed, train, folder)
                matching = {"matching": MATCHING_TOKENS / budget} if "matching" in name else {}
                found = train_once(
                    student,
                    folder,
                    train,
                    held_out,
                    tokens=budget,
                    seed=seed,
                    mixed_precision=arguments.mixed_precision,
                    evaluation_steps=max(1, 65_536 // (BATCH * WINDOW)),
                    **{**arm.training, **settings, **matching},
                )
                results[key] = {**found, **arm.passes_before(), "date": str(datetime.date.today())}
                print(key, results[key]["curve"][-1], f"{found['seconds']} s", flush=True)
                save()


def budget(arguments: argparse.Namespace, results: dict[str, Any], save: Any) -> None:
    """Measure the share of mean-pooling's gap that remains after one percent of pre-training."""
    total = PRETRAINING_TOKENS // 100
    precision = {"mixed_precision": arguments.mixed_precision}
    with _work_folder(arguments) as folder:
        train, held_out = write_library(folder)
        for seed in _numbers(arguments.seeds):
            for heads in _numbers(arguments.kv_heads):
                wanted = arguments.only.split(";") if arguments.only else BUDGETS
                missing = [arm for arm in wanted if f"{arm}|{heads}|{seed}" not in results]
                if not missing:
                    continue
                mean = convert(Arm({"merge": "mean"}, {}), heads, seed, train, folder)
                before = train_once(mean, folder, train, held_out, tokens=1, batch_size=1, seed=seed)
                mean_loss = before["curve"][0][1]
                for name in missing:
                    arm, key = BUDGETS[name], f"{name}|{heads}|{seed}"
                    samples = total // WINDOW if arm.is_repeated else CALIBRATION_WINDOWS
                    data = write_windows(folder, train, samples, seed) if arm.is_repeated else train
                    spent = arm.passes_before(samples)
                    rest = total if arm.is_repeated else total - spent["calibration_tokens"]
                    started = time.perf_counter()
                    student = convert(arm, heads, seed, data, folder, samples)
                    converting = round(time.perf_counter() - started, 1)
                    values = {**arm.training, **precision, "tokens": rest, "seed": seed}
                    found = train_once(student, folder, data, held_out, **values)
                    removed = (mean_loss - found["kept"]) / (mean_loss - found["teacher"])
                    results[key] = {
                        **{**found, **spent, **precision, "converting_seconds": converting},
                        **{"mean": mean_loss, "removed": removed, "distinct_tokens": total},
                        **{"machine": describe_machine(Path.cwd()), "date": str(datetime.date.today())},
                    }
                    print(key, f"{100 * removed:.2f} % removed", f"{found['seconds']} s", flush=True)
                    save()


@contextmanager
def _work_folder(arguments: argparse.Namespace) -> Iterator[Path]:
    """Return the folder that keeps conversions for the next run, or a temporary one."""
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        yield arguments.folder
        return
    with TemporaryDirectory(prefix="gqkva-uptrain-") as scratch:
        yield Path(scratch)


def convert(
    arm: Arm, heads: int, seed: int, train: Path, folder: Path, samples: int = CALIBRATION_WINDOWS
) -> Path:
    """Convert as an arm says; conversions are kept, because arms and budgets share them."""
    options = {"calibration": arm.is_calibrated, **arm.conversion}
    size = {"kv_budget": f"{heads / MODEL_HEADS:.1%}"} if arm.is_divided else {"gkv": heads}
    described = [f"{key}={value}" for key, value in options.items()]
    name = "-".join([*map(str, size.values()), train.stem, *described])
    out = folder / f"{name}-{seed}".replace(",", "+")
    if not out.exists():
        data = DataSettings(str(train), samples=samples, seed=seed) if arm.is_calibrated else None
        gqkva_convert.convert(MODEL, out, seed=seed, calibration=data, **size, **arm.conversion)
    return out


def train_once(student: Path, folder: Path, train: Path, held_out: Path, **values: Any) -> dict[str, Any]:
    """Train once and return the held-out losses by tokens."""
    settings = TrainingSettings(
        **{
            **{"data": str(train), "held_out": str(held_out), "held_out_rows": 128, "batch_size": BATCH},
            **{"save_steps": 10**9, "weight_decay": 0.0},
            **values,
        }
    )
    started = time.perf_counter()
    result = gqkva_convert.uptrain(student, folder / "out", settings, overwrite=True)
    lines = [json.loads(line) for line in (folder / "out-run/metrics.jsonl").read_text().splitlines()]
    return {
        "teacher": result["teacher_held_out_loss"],
        "curve": [[e["tokens"], e["held_out_loss"]] for e in lines if "held_out_loss" in e],
        "seconds": round(time.perf_counter() - started, 1),
        "kept": result["held_out_loss"],
        "tokens": result["tokens"],
    }


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
