"""Measure uptraining of the built-in model: tokens to recover, quality at a budget, speed, memory of losses.

    python benchmarks/uptrain.py curves --json FILE [--only "ARM;ARM"] [--tokens 4M] [--seeds 0,1,2]
    python benchmarks/uptrain.py budget --json FILE [--only "ARM;ARM"] [--kv-heads 2,1] [--seeds 0,1,2]
    python benchmarks/uptrain.py speed --json FILE
    python benchmarks/uptrain.py memory --json FILE
    python benchmarks/uptrain.py report --json FILE --out docs/uptraining-curves.png

Models are trained on standard-library files and measured on other files. ``curves`` keeps the learning rate
constant and measures a running mean of the weights, so that one run gives the whole curve; with
``--lr-scheduler-type cosine`` the rate decays, and only the end of each run counts. Finished runs are kept in
the JSON file and skipped. ``speed`` trains with transformers' ``Trainer`` and with ours in turn, each run in
a fresh process; on a GPU it takes a Llama of 1B parameters in bfloat16. ``memory`` samples resident memory
on a CPU, and reads the allocator's peak on a GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from uptraining.loss_memory import memory
from uptraining.recovery import budget, curves
from uptraining.report import report
from uptraining.speed import one, speed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["curves", "budget", "speed", "memory", "report", "one"])
    parser.add_argument("--json", type=Path, default=Path("uptrain.json"))
    parser.add_argument("--out", type=Path, default=Path("uptraining-curves.png"))
    parser.add_argument("--only", default="", help="arms, with ; between")
    parser.add_argument("--tokens", default="4M")
    parser.add_argument("--heads", type=int, default=2, help="key/value heads of curves")
    parser.add_argument(
        "--lr-scheduler-type", default="constant", choices=["constant", "cosine"], help="of curves"
    )
    parser.add_argument("--kv-heads", default="2,1", help="of budget")
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16"])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--folder", type=Path, help="where conversions are kept for the next run")
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
