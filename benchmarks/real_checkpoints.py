"""Convert, verify and measure real checkpoints on their own kind of text; no training.

    python benchmarks/real_checkpoints.py --data DIR [--markdown FILE]

DIR holds `models/` and `text/`: aidreams230K (MHA) on text sampled from it, stories260K and
tinystories-656k (grouped already) on TinyStories, one story at a time, without the first 100. It also
measures stories260K with its heads copied out, which loses nothing at 4 heads.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer

import gqkva_convert
from gqkva_convert.evaluation.perplexity import language_loss, load_causal_lm

TOKENS = 100_000


def stories(data: Path) -> list[str]:
    """Return TinyStories one by one, without the first 100, which are much easier than the rest."""
    text = (data / "text/tinystories/tinystories-train-head-2MiB.txt").read_text(encoding="utf-8")
    return [story.strip() for story in text.split("<|endoftext|>")[100:] if story.strip()]


def samples(data: Path) -> list[str]:
    """Return texts sampled from the aidreams model itself."""
    text = (data / "text/aidreams/sampled-by-original-t1.txt").read_text(encoding="utf-8")
    return [part.strip() for part in text.split("<|endoftext|>") if part.strip()]


MODELS: dict[str, tuple[Callable[[Path], list[str]], tuple[int, ...]]] = {
    "aidreams230K-mha-hf": (samples, (2, 1)),
    "stories260K-mha-hf": (stories, (4, 2, 1)),
    "stories260K-hf": (stories, (2, 1)),
    "tinystories-656k-hf": (stories, (2, 1)),
}


def sequences(folder: Path, texts: list[str]) -> list[list[int]]:
    """Return the ids of about TOKENS tokens, each text alone, cut to the model's positions."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    length, begin = config["max_position_embeddings"], config.get("bos_token_id")
    found: list[list[int]] = []
    total = 0
    for text in texts:
        ids = tokenizer.encode(text).ids
        if begin is not None and ids[:1] != [begin]:
            ids = [begin, *ids]
        found.append(ids[:length])
        total += len(found[-1])
        if total >= TOKENS:
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--merges", nargs="+", default=["mean", "first", "norm-weighted"])
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    lines = [
        f"`python benchmarks/real_checkpoints.py`, {datetime.date.today()}, "
        f"gqkva {gqkva_convert.__version__}, "
        f"torch {torch.__version__}, {platform.machine()} CPU, neighbour groups, no training, seed 0.",
        "",
        "| model | KV heads | merge | tokens | loss | perplexity | KV bytes per token | verified |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (read, targets) in MODELS.items():
        source = arguments.data / "models" / name
        tokens = sequences(source, read(arguments.data))
        with TemporaryDirectory() as scratch:
            rows = [(source, "-", "source")]
            for target in targets:
                for merge in arguments.merges:
                    out = gqkva_convert.convert(
                        source, Path(scratch) / f"{target}-{merge}", gkv=target, merge=merge
                    )
                    passed = gqkva_convert.verify(out, source)["passed"]
                    rows.append((out, merge, "yes" if passed else "NO"))
            for folder, merge, verified in rows:
                started = time.perf_counter()
                loss = language_loss(load_causal_lm(folder), tokens)
                facts = gqkva_convert.inspect(folder)
                heads = facts["attention"][0]["num_key_value_heads"]
                cells = (
                    name,
                    heads,
                    merge,
                    loss.tokens,
                    f"{loss.nats_per_token:.3f}",
                    f"{loss.perplexity:.2f}",
                    facts["kv_cache_bytes_per_token"],
                    verified,
                )
                lines.append("| " + " | ".join(map(str, cells)) + " |")
                print(lines[-1], f"{time.perf_counter() - started:.1f} s", flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
