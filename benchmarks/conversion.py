"""Measure the cost of a conversion, against copying, numpy's products, mergekit, and loading the whole model.

    python benchmarks/conversion.py --folder DIR [--rounds 3] [--mergekit PYTHON] [--small]

DIR holds the checkpoints (13.5 GB and 2.5 GB; made once, kept) and one output at a time. Every tool runs as a
whole process, in turn, and each round begins with another tool. Before each run the previous output is
removed, the disk is idle (`sync`) and the source is in the page cache. Linux with GNU coreutils only.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import describe_machine, describe_versions
from make_checkpoint import SHAPES
from measure import Run, heavy_imports, run_process, warm
from products import time_products
from results import render, tables

from gqkva_convert.checkpoint.folder import open_checkpoint
from gqkva_convert.checkpoint.jsonfile import write_json

HERE = Path(__file__).parent
GQKVA = [sys.executable, "-m", "gqkva_convert"]
GKV = "8"
# The default, the closed form from weights alone, and the GQA paper's conversion.
CONVERT = ("convert", "--gkv", GKV)
CONVERT_MEAN = (*CONVERT, "--merge", "mean")
STARTUP_REPEATS = 5
OFFLINE = {"HF_HUB_OFFLINE": "1"}


class Bench:
    """The working folder, and the numbers measured so far.

    Attributes:
        raw: All numbers, as JSON data; saved after every round.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder: Path = arguments.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.output = self.folder / "output"
        self.rounds: int = arguments.rounds
        self.seed: int = arguments.seed
        self.mergekit: Path | None = arguments.mergekit
        self.only: list[str] = [tool for tool in arguments.only.split(",") if tool]
        self.json: Path | None = arguments.json
        self.large, self.less = ("small", "tiny") if arguments.small else ("7b", "1b")
        self.raw: dict[str, Any] = {
            "command": _public_command(arguments),
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "seed": self.seed,
            "shapes": {"large": self.large, "less": self.less},
            "machine": describe_machine(self.folder),
            "versions": describe_versions(self.mergekit),
            "floor_rss_bytes": run_process(["true"]).peak_rss_bytes,
            "merged_sha256": {},
        }

    def checkpoint(self, shape: str, *options: str) -> Path:
        """Return the folder of a shape's checkpoint; make it if it does not exist."""
        folder = self.folder / f"{shape}-seed{self.seed}"
        if not folder.exists():
            _say(f"making {folder}")
            script = HERE / "make_checkpoint.py"
            subprocess.run(
                [sys.executable, script, shape, folder, "--seed", str(self.seed), *options], check=True
            )
        return folder

    def commands(self, source: Path) -> dict[str, list[str | Path]]:
        """Return the commands to time, by name."""
        commands: dict[str, list[str | Path]] = {
            "copy": ["cp", "-r", source, self.output],
            "convert": [*GQKVA, CONVERT[0], source, self.output, *CONVERT[1:]],
            "convert_mean": [*GQKVA, CONVERT_MEAN[0], source, self.output, *CONVERT_MEAN[1:]],
            "load_pool_save": [sys.executable, HERE / "load_pool_save.py", source, self.output, "--gkv", GKV],
        }
        if self.mergekit is not None:
            models = [{"model": str(source)}]
            recipe = self.folder / "mergekit.yaml"  # JSON is YAML
            write_json(recipe, {"merge_method": "passthrough", "models": models, "dtype": "bfloat16"})
            # mergekit's help says parameters, but it counts bytes; there is no tokenizer to copy.
            options = ["--lazy-unpickle", "--out-shard-size", "5B", "--no-copy-tokenizer"]
            script: list[str | Path] = [self.mergekit, "-m", "mergekit.scripts.run_yaml"]
            commands["mergekit"] = [*script, recipe, self.output, *options]
        return {tool: command for tool, command in commands.items() if not self.only or tool in self.only}

    def time(self, tool: str, command: list[str | Path], source: Path) -> dict[str, Any]:
        """Time one run and describe its output, which is then removed."""
        self.clear()
        speed, load = warm(source), os.getloadavg()[0]
        run = run_process(command, environment=OFFLINE)
        row = {"tool": tool, **asdict(run), "warm_bytes_per_second": speed, "load": load, "output_bytes": 0}
        if run.exit_status == 0:
            row["output_bytes"] = sum(path.stat().st_size for path in self.output.iterdir())
            if tool in ("convert_mean", "load_pool_save") and tool not in self.raw["merged_sha256"]:
                self.raw["merged_sha256"][tool] = merged_sha256(self.output)
        elif tool in ("copy", "convert", "convert_mean"):
            raise SystemExit(f"{tool} failed with {run.exit_status}: {run.error}")
        self.clear()
        _say(
            f"{tool}: {run.seconds:.2f} s, {run.cpu_seconds / run.seconds:.2f} cores busy, "
            f"{run.peak_rss_bytes / 1e6:.0f} MB {run.error[-200:]}"
        )
        return row

    def clear(self) -> None:
        """Remove the last output and wait until the disk is idle."""
        shutil.rmtree(self.output, ignore_errors=True)
        subprocess.run(["sync"], check=True)

    def save(self) -> None:
        if self.json is not None:
            write_json(self.json, self.raw)

    def run(self) -> None:
        """Run everything, the short parts first."""
        large, less = self.checkpoint(self.large), self.checkpoint(self.less)
        self.measure_startup(large)
        self.measure_plan()
        self.raw["less"] = []
        command = [*GQKVA, CONVERT_MEAN[0], less, self.output, *CONVERT_MEAN[1:]]
        for number in range(1, self.rounds + 1):
            self.raw["less"].append({"round": number, **self.time("convert less", command, less)})
        self.clear()
        self.save()
        self.measure_conversion(large)

    def measure_startup(self, source: Path) -> None:
        """Time the start-up of commands that read little."""
        commands: dict[str, list[str | Path]] = {"help": ["--help"], "inspect": ["inspect", source]}
        self.raw["startup"] = {}
        self.raw["heavy_imports"] = {}
        for name, arguments in commands.items():
            self.raw["heavy_imports"][name] = heavy_imports(arguments)  # warms the interpreter's files too
            runs = [_must(run_process([*GQKVA, *arguments])) for _ in range(STARTUP_REPEATS)]
            self.raw["startup"][name] = [asdict(run) for run in runs]

    def measure_plan(self) -> None:
        """Measure the plan of a model that fits neither into memory nor, often, on the disk."""
        source = self.checkpoint("70b", "--headers-only")
        command = [*GQKVA, "convert", source, self.output, "--gkv", GKV, "--dry-run", "--json"]
        self.raw["plan_70b"] = [asdict(_must(run_process(command))) for _ in range(STARTUP_REPEATS)]

    def measure_conversion(self, source: Path) -> None:
        """Run every tool once per round; skip another project's tool after it has failed."""
        commands = self.commands(source)
        self.raw["rounds"] = []
        self.raw["products"] = []
        for number in range(1, self.rounds + 1):
            tools = list(commands)
            first = (number - 1) % len(tools)
            for tool in tools[first:] + tools[:first]:
                row = {"round": number, **self.time(tool, commands[tool], source)}
                self.raw["rounds"].append(row)
                if row["exit_status"] != 0:
                    del commands[tool]
            products = {"load": os.getloadavg()[0], **time_products(SHAPES[self.large], int(GKV))}
            self.raw["products"].append(products)
            _say(f"numpy's products: {products['seconds']:.2f} s, CPU {products['cpu_seconds']:.2f} s")
            self.save()


def merged_sha256(folder: Path) -> str:
    """Return the SHA-256 over all key and value projections; tools that agree on it did the same work."""
    digest = hashlib.sha256()
    tensors = open_checkpoint(folder).tensors
    for name in sorted(tensors):
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            tensor = tensors[name]
            with tensor.file.open("rb") as file:
                file.seek(tensor.offset)
                for start in range(0, tensor.nbytes, 1 << 20):
                    digest.update(file.read(min(1 << 20, tensor.nbytes - start)))
    return digest.hexdigest()


def _must(run: Run) -> Run:
    if run.exit_status != 0:
        raise SystemExit(f"gqkva failed with {run.exit_status}: {run.error}")
    return run


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _public_command(arguments: argparse.Namespace) -> str:
    """Return the command that was given, without the names of this machine's folders."""
    parts = ["python benchmarks/conversion.py --folder DIR"]
    parts.append(f"--rounds {arguments.rounds} --seed {arguments.seed}")
    if arguments.mergekit is not None:
        parts.append("--mergekit PYTHON")
    if arguments.small:
        parts.append("--small")
    if arguments.only:
        parts.append(f"--only {arguments.only}")
    return " ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints and outputs go; 30 GB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    parser.add_argument("--mergekit", type=Path, help="Python of an environment with mergekit 0.1.5")
    parser.add_argument("--small", action="store_true", help="a small model, to try this script")
    parser.add_argument("--only", default="", help="tools to run, for example copy,convert; default all")
    parser.add_argument("--json", type=Path, help="write every raw number")
    parser.add_argument("--markdown", type=Path, help="write the results as a section of the documentation")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    bench.run()
    bench.save()
    if arguments.markdown is not None:
        arguments.markdown.write_text(render(bench.raw), encoding="utf-8")
    print(tables(bench.raw))
    if arguments.json is None:
        _say(json.dumps(bench.raw))


if __name__ == "__main__":
    main()
