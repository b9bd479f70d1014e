"""Make two tasks of Python's standard library, for language models that were trained on its other files.

    python recipes/asymgqa/make_tasks.py tasks

`next_line`: which of four lines of a file follows a dozen others (multiple choice). `package`: which package
a dozen lines are from (classification). Questions come from files that the built-in model was not trained on.
Texts for fine-tuning, of both tasks together, come from nine tenths of its training files (`train.jsonl`),
texts to measure the fine-tuning from the other tenth (`held-out.jsonl`). Also writes a YAML file of
lm-evaluation-harness and its questions for each task.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from gqkva_convert.data.python_library import iter_texts

LINES = 12
# Those with files on both sides.
PACKAGES = ("asyncio", "email", "idlelib", "importlib", "multiprocessing", "xml")
Example = dict[str, Any]


def windows(text: str, draw: random.Random, most: int) -> Iterator[tuple[list[str], int]]:
    """Return a file's lines that are not blank, and some line numbers with a dozen lines before them."""
    lines = [line for line in text.splitlines() if line.strip()]
    places = range(LINES, len(lines))
    for place in sorted(draw.sample(places, min(most, len(places)))):
        yield lines, place


def next_line(lines: list[str], place: int, draw: random.Random) -> Example | None:
    """Make a question: which of four equally indented lines comes next; None if there are too few."""
    right = lines[place]
    indent = len(right) - len(right.lstrip())
    others = {
        line
        for line in lines
        if len(line) - len(line.lstrip()) == indent and 10 <= len(line.strip()) <= 80 and line != right
    }
    if not 10 <= len(right.strip()) <= 80 or len(others) < 3:
        return None
    choices = [right, *draw.sample(sorted(others), 3)]
    draw.shuffle(choices)
    context = "\n".join(lines[place - LINES : place]) + "\n"
    return {"context": context, "choices": choices, "label": choices.index(right)}


def package(lines: list[str], place: int, name: str) -> Example:
    """Make a question: which package a dozen lines are from."""
    context = "\n".join(lines[place - LINES : place]) + "\n# package:"
    return {"context": context, "choices": [f" {each}" for each in PACKAGES], "label": PACKAGES.index(name)}


def examples(
    *, held_out: bool, seed: int, per_file: int, is_wanted: Callable[[str], bool] = bool
) -> dict[str, list[Example]]:
    """Return shuffled examples of both tasks; every package occurs equally often."""
    draw = random.Random(seed)
    found: dict[str, list[Example]] = {"next_line": []}
    by_package: dict[str, list[Example]] = {name: [] for name in PACKAGES}
    for path, text in iter_texts(held_out=held_out):
        if not is_wanted(path):
            continue
        top = path.split("/")[0]
        for lines, place in windows(text, draw, per_file):
            example = next_line(lines, place, draw)
            if example is not None:
                found["next_line"].append(example)
        if top in by_package:
            by_package[top] += [
                package(lines, place, top) for lines, place in windows(text, draw, 5 * per_file)
            ]
    rarest = min(map(len, by_package.values()))
    found["package"] = [each for every in by_package.values() for each in draw.sample(every, rarest)]
    for every in found.values():
        draw.shuffle(every)
    return found


def is_apart(path: str) -> bool:
    """Return whether a file belongs to the tenth that is held out from fine-tuning."""
    return hashlib.sha256(path.encode()).digest()[0] % 10 == 0


def write_task(out: Path, name: str, questions: list[Example]) -> None:
    path = out / f"{name}.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in questions))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        # lm-evaluation-harness reports the version; it changes with the questions.
        "metadata": {"version": hashlib.sha256(path.read_bytes()).hexdigest()[:12]},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (out / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--questions", type=int, default=400, help="of each task")
    parser.add_argument("--texts", type=int, default=1500, help="to fine-tune on, of each task")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    questions = examples(held_out=True, seed=0, per_file=20)
    for name, every in questions.items():
        write_task(arguments.out, name, every[: arguments.questions])
        print(f"{name}: {min(len(every), arguments.questions)} questions")
    for file, apart in (("train", False), ("held-out", True)):
        found = examples(
            held_out=False, seed=1, per_file=4, is_wanted=lambda path, apart=apart: is_apart(path) == apart
        )
        texts = [
            {"text": each["context"] + each["choices"][each["label"]]}
            for every in found.values()
            for each in every[: arguments.texts]
        ]
        random.Random(0).shuffle(texts)
        (arguments.out / f"{file}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
        print(f"{file}.jsonl: {len(texts)} texts")


if __name__ == "__main__":
    main()
