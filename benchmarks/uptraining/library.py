"""Rows of Python's standard library for training and for measuring."""

from __future__ import annotations

import json
import random
from pathlib import Path

from gqkva_convert.data.python_library import iter_texts
from gqkva_convert.demo_model.demo import MODEL

WINDOW = 256


def write_library(folder: Path) -> tuple[Path, Path]:
    """Write files to train on and to measure on, as JSON lines."""
    files = []
    for name, held_out in (("train", False), ("held-out", True)):
        file = folder / f"{name}.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for _, text in iter_texts(held_out=held_out):
                out.write(json.dumps({"text": text}) + "\n")
        files.append(file)
    return files[0], files[1]


def write_windows(folder: Path, train: Path, windows: int, seed: int) -> Path:
    """Write windows of the training files, each of a row's length, drawn without replacement."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    texts = [json.loads(line)["text"] for line in train.read_text(encoding="utf-8").splitlines()]
    size = WINDOW - 2  # without the tokens that begin and end a text
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    places = [(n, start) for n, some in enumerate(ids) for start in range(0, len(some) - size, size)]
    chosen = random.Random(seed).sample(places, windows)
    out = folder / f"windows-{windows}-{seed}.jsonl"
    with out.open("w", encoding="utf-8") as file:
        for number, start in chosen:
            text = tokenizer.decode(ids[number][start : start + size])
            file.write(json.dumps({"text": text}) + "\n")
    return out
