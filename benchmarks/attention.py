"""Measure one attention step in each layout, against torch's own attention.

    python benchmarks/attention.py [--device cuda] [--dtype float32] [--json FILE] [--markdown FILE]
    python benchmarks/attention.py --only decode:16x32768,prefill:16x1024

32 heads of 128 features, bfloat16 unless said otherwise. Decoding attends from one position to a cache,
prefill from a prompt to itself. The yardsticks are `scaled_dot_product_attention` with 8 equal KV heads
(``enable_gqa=True``) and with 32. Medians of interleaved rounds after warming up; on a GPU by CUDA events.
``peak`` is the memory that a step allocates beyond its inputs (CUDA only).
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from machine import describe_machine
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama import modeling_llama

from gqkva_convert.heads import HeadLayout
from gqkva_convert.modeling.attention import HeadMaps, grouped_attention

HEADS, HEAD_DIM, GROUPS = 32, 128, 8
SIZES = (1, 1, 2, 2, 4, 6, 8, 8)
LAYOUTS = {
    "GQA-8": HeadLayout.gqa(HEADS, GROUPS, HEAD_DIM),
    "GQKVA-4.8": HeadLayout.gqkva(HEADS // GROUPS, GROUPS, HEAD_DIM),
    f"unequal {'+'.join(map(str, SIZES))}": HeadLayout.unequal(SIZES, HEAD_DIM),
    "GKVA-8": HeadLayout.gkva(HEADS, GROUPS, HEAD_DIM),
}
# Multiples of the yardstick with the same number of key/value heads.
LIMITS = {"GQA-8": 1.15, "GQKVA-4.8": 1.15, "unequal": 1.5}

Step = Callable[[], Any]


def steps(batch: int, length: int, positions: int, device: str, dtype: torch.dtype) -> dict[str, Step]:
    """Return every layout's step and the yardsticks, each with inputs of its own stored heads."""
    generator = torch.Generator(device).manual_seed(0)

    def states(heads: int, count: int) -> torch.Tensor:
        shape = (batch, heads, count, HEAD_DIM)
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    causal = positions > 1
    made: dict[str, Step] = {}
    cached = {heads: (states(heads, length), states(heads, length)) for heads in (GROUPS, HEADS)}
    query = states(HEADS, positions)
    for name, heads in ((f"torch, {GROUPS} KV heads", GROUPS), (f"torch, {HEADS} KV heads", HEADS)):
        key, value = cached[heads]
        made[name] = lambda key=key, value=value, heads=heads: scaled_dot_product_attention(
            query, key, value, is_causal=causal, enable_gqa=heads < HEADS
        ).transpose(1, 2)
    for name, layout in LAYOUTS.items():
        module = SimpleNamespace(
            head_maps=HeadMaps(layout),
            config=SimpleNamespace(stock=SimpleNamespace(_attn_implementation="sdpa")),
            stock_module=modeling_llama.__name__,
            training=False,
            is_causal=True,
            modules=list,
        )
        stored = states(layout.num_query_heads, positions)
        key, value = cached[layout.num_key_heads]
        made[name] = lambda module=module, stored=stored, key=key, value=value: grouped_attention(
            module, stored, key, value, None, scaling=HEAD_DIM**-0.5, dropout=0.0
        )[0]
    return made


def measure(made: dict[str, Step], device: str, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Return median and spread of each step in milliseconds, rounds interleaved."""
    times: dict[str, list[float]] = {name: [] for name in made}
    repeats = {}
    for name, step in made.items():
        step()
        once = clock(step, 1, device)
        repeats[name] = max(1, min(200, int(seconds / rounds / max(once, 1e-5))))
        clock(step, repeats[name], device)
    for number in range(rounds):
        names = list(made)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(clock(made[name], repeats[name], device))
    found = {}
    for name, values in times.items():
        found[name] = {
            "median_ms": 1e3 * statistics.median(values),
            "min_ms": 1e3 * min(values),
            "max_ms": 1e3 * max(values),
        }
        if device == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            made[name]()
            found[name]["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found


def clock(step: Step, repeats: int, device: str) -> float:
    """Return the seconds that one call takes."""
    with torch.inference_mode():
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                step()
            end.record()
            torch.cuda.synchronize()
            return float(start.elapsed_time(end)) / 1e3 / repeats
        began = time.perf_counter()
        for _ in range(repeats):
            step()
        return (time.perf_counter() - began) / repeats


def cases(device: str, only: str) -> list[tuple[str, int, int, int]]:
    """Return kind, batch, cache length and positions of the cases that ``only`` names, or all."""
    if only:
        named = [case.replace("x", ":").split(":") for case in only.split(",")]
        return [(kind, int(b), int(n), 1 if kind == "decode" else int(n)) for kind, b, n in named]
    decode = [("decode", batch, length, 1) for batch in (1, 16) for length in (1024, 4096, 16384, 32768)]
    longest = 32768 if device == "cuda" else 4096
    prefill = [("prefill", 1, length, length) for length in (1024, 4096, 16384, 32768) if length <= longest]
    if device == "cpu":  # 16 x 32k keys and values of 32 heads are 8.6 GB: with --only, where there is room
        decode.remove(("decode", 16, 32768, 1))
    return decode + prefill


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as Markdown, each layout as a multiple of the yardstick."""
    base = f"torch, {GROUPS} KV heads"
    names = [name for name in results[0]["steps"] if name != base]
    lines = [
        "| step | batch | length | " + f"{base}, ms | " + " | ".join(names) + " |",
        "| --- | --- | --- | --- | " + " | ".join("---" for _ in names) + " |",
    ]
    for row in results:
        steps_, unit = row["steps"], row["steps"][base]["median_ms"]
        cells = [f"{steps_[name]['median_ms'] / unit:.2f} x" for name in names]
        lines.append(
            f"| {row['kind']} | {row['batch']} | {row['length']:,} | {unit:.3f} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def promises(results: list[dict[str, Any]]) -> str:
    """Return a table of the slowest decoding step of each layout and its limit."""
    base = f"torch, {GROUPS} KV heads"
    lines = ["| layout | limit | worst decoding step | kept |", "| --- | --- | --- | --- |"]
    for name in results[0]["steps"]:
        limit = LIMITS.get(name.split()[0])
        if limit is None:
            continue
        decoding = (row["steps"] for row in results if row["kind"] == "decode")
        worst = max((step[name]["median_ms"] / step[base]["median_ms"] for step in decoding), default=0.0)
        kept = "yes" if worst <= limit else "**no**"
        lines.append(f"| {name} | {limit} x | {worst:.2f} x | {kept} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--only", default="", help="such as decode:16x32768,prefill:16x1024")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each layout and case")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    results = []
    dtype = getattr(torch, arguments.dtype)
    for kind, batch, length, positions in cases(arguments.device, arguments.only):
        made = steps(batch, length, positions, arguments.device, dtype)
        found = measure(made, arguments.device, arguments.rounds, arguments.seconds)
        results.append({"kind": kind, "batch": batch, "length": length, "steps": found})
        print(kind, batch, length, {k: round(v["median_ms"], 3) for k, v in found.items()}, file=sys.stderr)
    text = f"{promises(results)}\n\n{table(results)}"
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")
    if arguments.json:
        data = {
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "machine": describe_machine(Path.cwd()),
            "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
            "torch": torch.__version__,
            "results": results,
        }
        arguments.json.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
