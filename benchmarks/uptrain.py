"""Uptraining the built-in model: tokens to recover, quality at a budget, speed, memory of losses.

    python benchmarks/uptrain.py curves --json FILE [--only ARM,...] [--tokens 4M] [--seeds 0,1,2]
    python benchmarks/uptrain.py budget --json FILE [--only ARM,...] [--kv-heads 2,1] [--seeds 0,1,2]
    python benchmarks/uptrain.py speed --json FILE
    python benchmarks/uptrain.py memory --json FILE
    python benchmarks/uptrain.py report --json FILE --out docs/uptraining-curves.png

Trained on standard-library files, measured on others. ``curves`` holds the learning rate and measures a
running mean of the weights, so that one run gives the whole curve; finished runs are kept in the JSON file
and not run again. ``speed`` trains with transformers' ``Trainer`` and with ours, in one process, in turn.
``memory`` needs a GPU to say more than sizes. On a GPU, ``speed`` takes a Llama of 1B parameters in bfloat16.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
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
from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.data.python_library import iter_texts
from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.uptraining.settings import TrainingSettings, parse_count

PRETRAINING_TOKENS = 30_998_528
CALIBRATION_WINDOWS, WINDOW = 256, 256
# How each arm merges, and what it trains on.
CLOSED = {"merge": "closed-form"}
FITTED = {"calibration": True, "refine": "layerwise,output"}
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mean, task": ({"merge": "mean"}, {"learning_rate": 1e-3}),
    "mean, kl": ({"merge": "mean"}, {"teacher": str(MODEL), "matching": 0.0, "learning_rate": 1e-3}),
    "aligned, kl": (
        {"merge": "aligned-rescaled"},
        {"teacher": str(MODEL), "matching": 0.0, "learning_rate": 1e-3},
    ),
    "closed form, task": (CLOSED, {"learning_rate": 5e-4}),
    "closed form, kl": (CLOSED, {"teacher": str(MODEL), "matching": 0.0, "learning_rate": 5e-4}),
    "closed form, matching, kl": (
        {"calibration": True},
        {"teacher": str(MODEL), "matching_learning_rate": 4e-3, "learning_rate": 5e-4},
    ),
    "closed form, layer-wise, kl": (
        FITTED,
        {"teacher": str(MODEL), "matching": 0.0, "learning_rate": 5e-4},
    ),
}
# At a budget: tokens that are few are gone over again, by the fit and by the training.
REPEATED = "closed form, layer-wise, four epochs"
BUDGET_ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "closed form, matching, kl": (
        ARMS["closed form, matching, kl"][0],
        {**ARMS["closed form, matching, kl"][1], "batch_size": 4, "matching": 0.6},
    ),
    "closed form, layer-wise, kl": (
        FITTED,
        {**ARMS["closed form, layer-wise, kl"][1], "batch_size": 4},
    ),
    REPEATED: (
        FITTED,
        {
            **{"teacher": str(MODEL), "matching": 0.0, "loss": {"kl": 1.0, "hidden": 1.0}},
            **{"learning_rate": 3e-4, "batch_size": 8, "num_train_epochs": 4},
        },
    ),
}
# Tokens of the stage that matches blocks, in the arm that has one.
MATCHING_TOKENS = 131_072
BATCH = 8


def write_library(folder: Path) -> tuple[Path, Path]:
    """Files to train on and to measure on, as JSON lines."""
    files = []
    for name, held_out in (("train", False), ("held-out", True)):
        file = folder / f"{name}.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for _, text in iter_texts(held_out=held_out):
                out.write(json.dumps({"text": text}) + "\n")
        files.append(file)
    return files[0], files[1]


def write_windows(folder: Path, train: Path, windows: int, seed: int) -> Path:
    """So many pieces of the files to train on, each of a row's length, drawn without one twice."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    texts = [json.loads(line)["text"] for line in train.read_text(encoding="utf-8").splitlines()]
    size = WINDOW - 2  # beside the marks that begin and end a text
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    places = [(n, start) for n, some in enumerate(ids) for start in range(0, len(some) - size, size)]
    chosen = random.Random(seed).sample(places, windows)
    out = folder / f"windows-{windows}-{seed}.jsonl"
    with out.open("w", encoding="utf-8") as file:
        for number, start in chosen:
            text = tokenizer.decode(ids[number][start : start + size])
            file.write(json.dumps({"text": text}) + "\n")
    return out


def convert(
    options: dict[str, Any],
    heads: int,
    seed: int,
    train: Path,
    folder: Path,
    samples: int = CALIBRATION_WINDOWS,
) -> Path:
    """A conversion of an arm; kept, since arms and budgets share them."""
    name = "-".join([str(heads), train.stem, *(f"{key}={value}" for key, value in options.items())])
    out = folder / f"{name}-{seed}".replace(",", "+")
    if not out.exists():
        given = dict(options)
        if given.pop("calibration", False):
            given["calibration"] = DataSettings(str(train), samples=samples, seed=seed)
        gqkva_convert.convert(MODEL, out, gkv=heads, seed=seed, **given)
    return out


def passes_before(options: dict[str, Any], samples: int = CALIBRATION_WINDOWS) -> dict[str, int]:
    """Tokens that the conversion read, and those that its fit went over, as often as it did."""
    if not options.get("calibration"):
        return {"calibration_tokens": 0, "fit_tokens": 0}
    from gqkva_convert.conversion.refinement.layerwise import FitSettings

    settings = FitSettings()
    steps = settings.steps_over(samples * WINDOW) if "layerwise" in options.get("refine", "") else 0
    return {"calibration_tokens": samples * WINDOW, "fit_tokens": steps * settings.positions}


def run(student: Path, folder: Path, train: Path, held_out: Path, **values: Any) -> dict[str, Any]:
    """Train once and give its held-out losses by tokens."""
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


def curves(arguments: argparse.Namespace, results: dict[str, Any], save: Any) -> None:
    budget = parse_count(arguments.tokens)
    with TemporaryDirectory(prefix="gqkva-uptrain-") as name:
        folder = Path(name)
        train, held_out = write_library(folder)
        for seed in map(int, arguments.seeds.split(",")):
            for arm, (options, values) in ARMS.items():
                key = f"{arm}|{arguments.heads}|{seed}"
                if key in results or (arguments.only and arm not in arguments.only.split(";")):
                    continue
                student = convert(options, arguments.heads, seed, train, folder)
                share = MATCHING_TOKENS / budget if "matching" in arm else None
                found = run(
                    student,
                    folder,
                    train,
                    held_out,
                    tokens=budget,
                    seed=seed,
                    mixed_precision=arguments.mixed_precision,
                    lr_scheduler_type="constant",
                    ema=0.99,
                    evaluation_steps=max(1, 65_536 // (BATCH * WINDOW)),
                    **({} if share is None else {"matching": share}),
                    **values,
                )
                results[key] = {**found, **passes_before(options)}
                print(key, results[key]["curve"][-1], f"{found['seconds']} s", flush=True)
                save()


def budget(arguments: argparse.Namespace, results: dict[str, Any], save: Any) -> None:
    """One percent of pre-training: what is left of the gap that mean-pooling leaves."""
    total = PRETRAINING_TOKENS // 100
    with TemporaryDirectory(prefix="gqkva-uptrain-") as name:
        folder = Path(name)
        train, held_out = write_library(folder)
        for seed in map(int, arguments.seeds.split(",")):
            for heads in map(int, arguments.kv_heads.split(",")):
                wanted = arguments.only.split(";") if arguments.only else BUDGET_ARMS
                missing = [arm for arm in wanted if f"{arm}|{heads}|{seed}" not in results]
                if not missing:
                    continue
                mean = convert({"merge": "mean"}, heads, seed, train, folder)
                before = run(mean, folder, train, held_out, tokens=1, batch_size=1, seed=seed)
                mean_loss = before["curve"][0][1]
                for arm in missing:
                    key, (options, values) = f"{arm}|{heads}|{seed}", BUDGET_ARMS[arm]
                    # Where tokens are gone over again, calibration and training read the same ones.
                    samples = total // WINDOW if arm == REPEATED else CALIBRATION_WINDOWS
                    data = write_windows(folder, train, samples, seed) if arm == REPEATED else train
                    spent = passes_before(options, samples)
                    rest = total if arm == REPEATED else total - spent["calibration_tokens"]
                    precision = {"mixed_precision": arguments.mixed_precision}
                    started = time.perf_counter()
                    student = convert(options, heads, seed, data, folder, samples)
                    converting = round(time.perf_counter() - started, 1)
                    values = {**values, **precision, "tokens": rest, "seed": seed}
                    found = run(student, folder, data, held_out, **values)
                    removed = (mean_loss - found["kept"]) / (mean_loss - found["teacher"])
                    results[key] = {
                        **{**found, **spent, **precision, "converting_seconds": converting},
                        **{"mean": mean_loss, "removed": removed, "distinct_tokens": total},
                        **{"machine": describe_machine(Path.cwd()), "date": str(datetime.date.today())},
                    }
                    print(key, f"{100 * removed:.2f} % removed", f"{found['seconds']} s", flush=True)
                    save()


def speed(arguments: argparse.Namespace, results: dict[str, Any], save: Any) -> None:
    """Tokens a second of ours and of transformers' Trainer, three turns each."""
    is_gpu = torch.cuda.is_available()
    with TemporaryDirectory(prefix="gqkva-uptrain-") as name:
        folder = Path(name)
        train, _ = write_library(folder)
        source, length, batch = MODEL, WINDOW, 32
        if is_gpu:
            source, length, batch = _large(folder), 2048, 8
        kinds = ("trainer", "ours", "distilled")
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds):
            for kind in kinds:
                command = [sys.executable, __file__, "one", "--kind", kind, "--model", str(source)]
                command += ["--data", str(train), "--length", str(length), "--batch", str(batch)]
                shown = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
                found[kind].append(float(shown.stdout.strip().splitlines()[-1]))
                print(kind, found[kind][-1], flush=True)
        medians = {kind: statistics.median(values) for kind, values in found.items()}
        results["gpu" if is_gpu else "cpu"] = {
            **{"runs": found, "length": length, "batch": batch},
            "ours / trainer": medians["ours"] / medians["trainer"],
            "time distilled / plain": medians["ours"] / medians["distilled"],
            "machine": describe_machine(Path.cwd()),
            "date": str(datetime.date.today()),
        }
        save()


def _large(folder: Path) -> Path:
    """A Llama of about 1B parameters with the built-in model's tokenizer."""
    import shutil

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
    """One timed run in a fresh process: the last line is tokens a second, without the first steps."""
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
            **({"teacher": arguments.model, "matching": 0.0} if arguments.kind == "distilled" else {}),
        )

        def watch(entry: dict[str, Any]) -> None:
            if "loss" in entry:
                times.append(entry["tokens"] / entry["tokens_per_second"] / entry["step"])

        gqkva_convert.uptrain(arguments.model, Path(name) / "out", settings, any_model=True, watch=watch)
    print(arguments.batch * arguments.length / statistics.median(times[warm:]))


def _with_trainer(arguments: argparse.Namespace, warm: int, steps: int) -> float:
    """Transformers' Trainer on the same rows."""
    import transformers

    from gqkva_convert.uptraining.rows.making import make_maker
    from gqkva_convert.uptraining.rows.stored import stored_rows

    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    rows = stored_rows(
        arguments.data,
        make_maker("causal-lm", tokenizer, arguments.length, arguments.data, packing=True),
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


def memory(arguments: argparse.Namespace, results: dict[str, Any], save: Any) -> None:
    """Peak of losses over 128k tokens of vocabulary for 8k positions: whole logits, and in chunks."""
    from gqkva_convert.uptraining.objectives.losses import Head, chunked_losses, task_loss, teacher_divergence

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    positions, width, vocabulary = (8192, 2048, 128_000) if device.type == "cuda" else (2048, 256, 128_000)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hidden = torch.randn(positions, width, device=device, dtype=dtype, requires_grad=True)
    theirs = torch.randn(positions, width, device=device, dtype=dtype)
    weight = torch.randn(vocabulary, width, device=device, dtype=dtype).mul_(0.02).requires_grad_(True)
    labels = torch.randint(vocabulary, (positions,), device=device)
    teacher = Head(weight.detach())

    def losses(logits: Any, span: slice) -> dict[str, Any]:
        with torch.no_grad():
            wanted = teacher.logits(theirs[span])
        return {"task": task_loss(logits, labels[span]), "kl": teacher_divergence(logits, wanted, 1.0)}

    found = {}
    for name, rows in (("chunks", None), ("whole", positions)):
        peak = _peak(
            lambda rows=rows: chunked_losses(hidden, Head(weight), losses, _BOTH, rows)[0].backward()
        )
        found[name] = peak
        weight.grad = hidden.grad = None
        print(name, f"{peak / 2**20:.0f} MiB", flush=True)
    one_copy = 4 * positions * vocabulary
    shape = {"positions": positions, "width": width, "vocabulary": vocabulary}
    results[device.type] = {
        **found,
        "logits_bytes": one_copy,
        **shape,
        "machine": describe_machine(Path.cwd()),
    }
    save()


_BOTH = {"task": 1.0, "kl": 1.0}


def _peak(work: Any) -> int:
    """Bytes that some work needs at most beyond what is there."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    import threading

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, highest, done = resident(), [0], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], resident())

    thread = threading.Thread(target=look)
    thread.start()
    work()
    done.set()
    thread.join()
    return highest[0] - before


def report(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """One picture of all curves, and the tables."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = results.get("curves", {})
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    print("| arm | seed | tokens before training | within 2 % after | last tokens | last loss |")
    print("| --- | --- | --- | --- | --- | --- |")
    teacher = 0.0
    colours = {arm: f"C{number}" for number, arm in enumerate(ARMS)}
    teacher = next((entry["teacher"] for entry in found.values() if entry["teacher"]), 0.0)
    for key, entry in found.items():
        arm, heads, seed = key.split("|")
        if heads != "2":
            continue
        before = entry["calibration_tokens"] + entry["fit_tokens"]
        points = [(before + tokens, loss) for tokens, loss in entry["curve"]]
        label = arm if seed == "0" else None
        axis.plot(*zip(*points, strict=True), color=colours[arm], label=label, linewidth=1)
        reached = next((tokens for tokens, loss in points if loss <= 1.02 * teacher), None)
        shown = "not" if reached is None else f"{reached:,}"
        print(f"| {arm} | {seed} | {before:,} | {shown} | {points[-1][0]:,} | {points[-1][1]:.4f} |")
    axis.axhline(teacher, color="gray", linestyle="--", label="original")
    axis.axhline(1.02 * teacher, color="gray", linestyle=":", label="within 2 %")
    axis.set_xscale("log")
    axis.set_xlabel("tokens read, every pass of calibration and fits counted")
    axis.set_ylabel("held-out loss, nats per token")
    axis.set_ylim(top=teacher + 1.5)
    axis.legend(fontsize=8)
    figure.savefig(arguments.out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["curves", "budget", "speed", "memory", "report", "one"])
    parser.add_argument("--json", type=Path, default=Path("uptrain.json"))
    parser.add_argument("--out", type=Path, default=Path("uptraining-curves.png"))
    parser.add_argument("--only", default="", help="arms, with ; between")
    parser.add_argument("--tokens", default="4M")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--kv-heads", default="2,1", help="of budget")
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16"])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rounds", type=int, default=3)
    for name in ("--kind", "--model", "--data"):
        parser.add_argument(name, default="")
    for name in ("--length", "--batch"):
        parser.add_argument(name, type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "one":
        one(arguments)
        return
    results = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
    if arguments.what == "report":
        report(arguments, results)
        return

    def save() -> None:
        # Several runs may share the file: only this one's part is replaced.
        stored = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
        stored.setdefault(arguments.what, {}).update(results.get(arguments.what, {}))
        arguments.json.write_text(json.dumps(stored, indent=1))

    work = {"curves": curves, "budget": budget, "speed": speed, "memory": memory}[arguments.what]
    work(arguments, results.setdefault(arguments.what, {}), save)


if __name__ == "__main__":
    main()
