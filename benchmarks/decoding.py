"""Measure how much faster a whole model decodes with fewer stored heads, and the bytes that it moves.

    python benchmarks/decoding.py [--device cuda] [--layers 2] [--cache dynamic] [--markdown FILE]

Writes a Llama-shaped checkpoint with random weights and long positions, converts it with `gqkva convert` to a
stock GQA model and to a grouped GQKVA one, and runs `gqkva bench` on each beside the original. By default
keys and values outweigh the weights. Expected: the ratio of bytes moved, weights and cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

HEAD_DIM = 128


def write_checkpoint(folder: Path, arguments: argparse.Namespace) -> None:
    """Write a Llama of the benchmark's shape in bfloat16."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=arguments.heads * HEAD_DIM,
        intermediate_size=arguments.intermediate,
        num_attention_heads=arguments.heads,
        num_hidden_layers=arguments.layers,
        max_position_embeddings=max(arguments.context),
    )
    torch.manual_seed(arguments.seed)
    LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def gqkva(*words: object) -> str:
    """Run a command and return what it prints."""
    command = [sys.executable, "-m", "gqkva_convert", *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def lines_of(name: str, result: dict[str, Any]) -> list[str]:
    """Return a conversion's rows of the table, each below the original's."""
    found = []
    speedup = {(entry["context"], entry["batch"]): entry for entry in result["speedup"]}
    for row in result["rows"]:
        title = name if row["model"] == "converted" else "original"
        cells = [str(row["batch"]), f"{row['context']:,}", title]
        if row["skipped"] is not None:
            found.append(f"| {' | '.join(cells)} | {row['skipped']} |" + " |" * 8)
            continue
        first, third = (1e3 * seconds for seconds in row["decode_seconds_spread"])
        cells += [
            f"{row['prefill_tokens_per_second']:,.0f}",
            f"{row['bytes_per_step'] / 1e9:.3f}",
            f"{row['kv_cache_bytes'] / 1e6:,.0f}",
            f"{(row['peak_memory_bytes'] or 0) / 1e9:.2f}",
            f"{1e3 * row['decode_seconds']:.1f} ({first:.1f}-{third:.1f})",
            f"{row['of_limit']:.0%}",
        ]
        entry = speedup.get((row["context"], row["batch"]))
        if row["model"] == "converted" and entry is not None:
            cells += [f"{entry['decode']:.2f} x", f"{entry['ideal']:.2f} x", f"{entry['of_ideal']:.2f}"]
        else:
            cells += ["", "", ""]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--intermediate", type=int, default=1024)
    parser.add_argument("--gkv", type=int, default=4, help="key/value heads to keep")
    parser.add_argument("--context", type=int, nargs="*", default=[16_384, 32_768])
    parser.add_argument("--batch", type=int, nargs="*", default=[1])
    parser.add_argument("--dtype", nargs="*", default=["bfloat16", "float32"])
    parser.add_argument("--cache", default="static")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to put checkpoints; by default a temporary folder")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    layouts = {
        f"GQA-{arguments.gkv}": ["--gkv", arguments.gkv],
        f"GQKVA-{arguments.heads // arguments.gkv}.{arguments.gkv}": [
            *("--gq", arguments.heads // arguments.gkv),
            *("--gkv", arguments.gkv),
        ],
    }
    lines = []
    with TemporaryDirectory(dir=arguments.folder) as scratch:
        source = Path(scratch) / "mha"
        write_checkpoint(source, arguments)
        for name, options in layouts.items():
            gqkva("convert", source, Path(scratch) / name, *options, "--merge", "mean")
        for dtype in arguments.dtype:
            for name in layouts:
                load = os.getloadavg()[0]
                text = gqkva(
                    *("bench", Path(scratch) / name, "--against", source, "--json"),
                    *("--context", ",".join(map(str, arguments.context))),
                    *("--batch", ",".join(map(str, arguments.batch))),
                    *("--device", arguments.device, "--dtype", dtype),
                    *("--cache", arguments.cache, "--rounds", arguments.rounds, "--seed", arguments.seed),
                )
                result = json.loads(text)
                versions = result["versions"]
                lines += [
                    f"\n{name}, {dtype}, {result['settings']['cache']} cache: {result['device']}, "
                    f"{result['machine']}, {result['settings']['threads']} threads, "
                    f"{result['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s, "
                    f"torch {versions['torch']}, transformers {versions['transformers']}, "
                    f"seed {arguments.seed}, {result['date']}, load {load:.2f} before\n",
                    "| batch | context | model | prefill, tokens/s | moved, GB | KV cache, MB | peak, GB | "
                    "ms per step (quartiles) | of the limit | faster | expected | share |",
                    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
                    *lines_of(name, result),
                ]
                print("\n".join(lines[-len(lines_of(name, result)) - 3 :]), flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
