"""Malformed input, through every command that reads it: one line and a code, in bounded time and memory."""

from __future__ import annotations

import gzip
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import datasets
import learners
import pytest
import tiny_models
import torch
from mutations import damage
from safetensors.numpy import load_file
from typer.testing import Result

from .conftest import CODES, FOUND, mostly_slow

Run = Callable[..., Result]
SECONDS = 30
BYTES = 1 << 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source in two formats, a conversion of it, a plan, a recipe, settings and data, free to be copied."""
    from gqkva_convert import convert, plan

    root = tmp_path_factory.mktemp("whole")
    source = learners.make_decoder(root / "source")
    model = tiny_models.load(source, "LlamaForCausalLM")
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="300KB")
    pickled = root / "pickled"
    shutil.copytree(source, pickled, ignore=shutil.ignore_patterns("*.safetensors*"))
    torch.save(
        {
            name: torch.from_numpy(array)
            for file in source.glob("*.safetensors")
            for name, array in load_file(file).items()
        },
        pickled / "pytorch_model.bin",
    )
    convert(source, root / "converted", gkv=2)
    convert(source, root / "grouped", gkv=2, gq=2)
    plan(source, root / "plan.json", gkv=2)
    (root / "recipe.yaml").write_text(
        "description: x\nneeds: y\nvariables: {heads: [1, 2]}\nsteps:\n"
        "  - for: {n: '${heads}'}\n    steps:\n"
        "      - convert: {model: built-in, out: '${work}/${n}', gkv: '${n}'}\n"
    )
    (root / "settings.yaml").write_text("learning_rate: 1e-3\nbatch_size: 4\nlength: 8\nloss: {task: 1}\n")
    learners.write_texts(root / "data.jsonl", count=40)
    table = datasets.Dataset.from_json(str(root / "data.jsonl"), cache_dir=str(root / "cache"))
    table.to_csv(root / "data.csv")
    table.to_parquet(root / "data.parquet")
    table.save_to_disk(root / "saved")
    (root / "data.txt").write_text("\n".join(table["text"]))
    (root / "data.jsonl.gz").write_bytes(gzip.compress((root / "data.jsonl").read_bytes()))
    return root


@contextmanager
def bounded() -> Iterator[dict[str, float]]:
    """Raise in a command that hangs; tell how long it took and by how much the process grew."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still running after {SECONDS} s")

    before, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, float] = {}
    signal.alarm(SECONDS)
    try:
        yield found
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        found["seconds"] = time.monotonic() - began
        found["grown"] = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)


# What is copied, which of its files are damaged, and the command: {0} is the copy, {out} a new place.
SUBJECTS = {
    "inspect": ("source", "*", "inspect {0}"),
    "inspect pickled": ("pickled", "*.bin", "inspect {0}"),
    "convert mean": ("source", "*", "convert {0} {out} --gkv 2 --merge mean"),
    "convert": ("source", "*", "convert {0} {out} --gkv 2"),
    "convert pickled": ("pickled", "*", "convert {0} {out} --gkv 1"),
    "verify": ("converted", "*", "verify {0}"),
    "verify grouped": ("grouped", "*", "verify {0}"),
    "report": ("converted", "*", "report {0}"),
    "push": ("converted", "*", "push {0} owner/name --dry-run --unverified"),
    "evaluate grouped": ("grouped", "*", "evaluate {0} --data {root}/data.jsonl --length 8"),
    "export gguf": ("converted", "*", "export {0} {out} --runtime gguf"),
    "evaluate": ("converted", "*", "evaluate {0} --data {root}/data.jsonl --length 8"),
    "uptrain": (
        "converted",
        "*",
        "uptrain {0} {out} --data {root}/data.jsonl --tokens 64 --length 8 --batch-size 4 "
        "--set held_out_rows=2",
    ),
    "plan": ("plan.json", "", "convert {root}/source {out} --plan {0}"),
    "recipe": ("recipe.yaml", "", "run {0} --work {out} --dry-run"),
    "settings": (
        "settings.yaml",
        "",
        "uptrain {root}/converted {out} --data {root}/data.jsonl --tokens 64 --settings {0}",
    ),
    "data": ("data.jsonl", "", "evaluate {root}/converted --data {0} --length 8"),
    **{
        f"data, {kind}": (f"data.{kind}", "", "evaluate {root}/converted --data {0} --length 8")
        for kind in ("csv", "txt", "parquet", "jsonl.gz")
    },
    "data, saved": ("saved", "*", "evaluate {root}/converted --data {0} --length 8"),
    "streamed": (
        "saved",
        "*",
        "uptrain {root}/converted {out} --data {0} --tokens 64 --length 8 --batch-size 4 "
        "--set held_out_rows=2 --set streaming=true",
    ),
    "calibration, parquet": ("data.parquet", "", "convert {root}/source {out} --gkv 2 --calibration {0}"),
    "calibration": ("data.jsonl", "", "convert {root}/source {out} --gkv 2 --calibration {0}"),
}


# Those of the default run.
QUICK = (
    "inspect",
    "inspect pickled",
    "convert mean",
    "verify grouped",
    "report",
    "plan",
    "recipe",
    "settings",
    "data",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("subject", mostly_slow(SUBJECTS, QUICK))
def test_a_damaged_file_is_one_line(
    subject: str, trials: int, folders: Path, gqkva: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a byte says: no traceback, no hang, no burst of memory, and nothing half-written."""
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))
    name, pattern, command = SUBJECTS[subject]
    failures = []
    for seed in range(-1, trials):  # the first is without damage
        draw = Random(f"{subject} {seed}")
        place = tmp_path / str(seed)
        place.mkdir()
        copy = place / name
        if pattern:
            shutil.copytree(folders / name, copy)
            file = draw.choice(sorted(path for path in copy.glob(pattern) if path.is_file()))
        else:
            shutil.copy(folders / name, copy)
            file = copy
        if seed >= 0:
            damage(file, draw)
        out = place / "out"
        arguments = [part.format(copy, root=folders, out=out) for part in command.split()]
        result, failure = _tried(gqkva, arguments, out)
        assert seed >= 0 or result.exit_code == 0, result.output
        FOUND[f"malformed, {subject}"] += 1
        if failure is not None:
            failures.append(f"seed {seed}, {file.name}: {failure}")
        shutil.rmtree(place, ignore_errors=True)
    assert not failures, "\n".join([f"{len(failures)} of {trials}", *failures])


def _tried(gqkva: Run, arguments: list[str], out: Path) -> tuple[Result, str | None]:
    with bounded() as found:
        result = gqkva(*arguments)
    return result, _failure(result, arguments[0], out, found["grown"])


def _failure(result: Any, command: str, out: Path, grown: float) -> str | None:
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    raised = result.exception
    if raised is not None and not isinstance(raised, SystemExit):
        trace = raised.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
        return f"{type(raised).__name__}: {raised} ({where})"[:300]
    if result.exit_code not in CODES:
        return f"code {result.exit_code}: {result.output[-200:]}"
    if result.exit_code and len(errors) != 1 and not (command == "verify" and result.exit_code == 9):
        return f"{len(errors)} lines of error: {result.stderr[-200:]}"
    if result.exit_code and out.exists() and command != "run":
        return f"code {result.exit_code} and an output"
    left = [path.name for path in out.parent.iterdir() if path.name.startswith(".out")]
    if left:
        return f"left {left}"
    if grown > BYTES:
        return f"grew by {grown / 2**30:.1f} GiB"
    return None
