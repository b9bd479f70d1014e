"""Measure time and memory of `gqkva export --runtime gguf`, of a checkpoint and of a conversion of it.

    python benchmarks/serving.py --folder DIR [--shape 1b] [--rounds 3]

``DIR`` needs four times the checkpoint's size (2.5 GB for ``1b``); everything made there is removed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import string
import sys
from pathlib import Path

from machine import describe_machine
from make_checkpoint import SHAPES, make_checkpoint
from measure import run_process, warm

DTYPES = ("bf16", "f16", "q8_0", "f32")


def write_tokenizer(folder: Path, size: int) -> None:
    """Write a byte-level BPE of about the model's vocabulary size, for a realistic reading time."""
    letters = list(string.ascii_lowercase)
    words = [
        "".join(word)
        for length in (2, 3, 4)
        for word in itertools.islice(itertools.product(letters, repeat=length), 20000)
    ]
    words = words[: size - len(letters)]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {word: place for place, word in enumerate([*letters, *words])},
            "merges": [[word[:-1], word[-1]] for word in words],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    source, grouped, out = (arguments.folder / name for name in ("source", "grouped", "out"))
    gqkva = [sys.executable, "-m", "gqkva_convert"]
    heads = shape.num_attention_heads
    try:
        make_checkpoint(shape, source, seed=0)
        write_tokenizer(source, shape.vocab_size)
        options = ["--gq", str(heads // 4), "--gkv", "4", "--merge", "mean"]
        run = run_process([*gqkva, "convert", source, grouped, *options])
        assert run.exit_status == 0, run.error
        print(describe_machine(arguments.folder))
        print("| checkpoint | dtype | GGUF, GB | s | GB/s written | peak resident, MB | peak anonymous, MB |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, folder in (("MHA", source), (f"GQKVA-{heads // 4}.4", grouped)):
            warm(folder)
            for dtype in DTYPES:
                runs = []
                command = [*gqkva, "export", folder, out, "--runtime", "gguf", "--dtype", dtype]
                for _ in range(arguments.rounds):
                    runs.append(run_process(command))
                    assert runs[-1].exit_status == 0, runs[-1].error
                    written = next(out.glob("*.gguf")).stat().st_size
                    shutil.rmtree(out)
                seconds = statistics.median(run.seconds for run in runs)
                resident = max(run.peak_rss_bytes for run in runs) / 1e6
                anonymous = max(run.peak_anonymous_bytes for run in runs) / 1e6
                rate = written / 1e9 / seconds
                cells = (
                    name,
                    dtype,
                    f"{written / 1e9:.2f}",
                    f"{seconds:.1f}",
                    f"{rate:.2f}",
                    f"{resident:.0f}",
                    f"{anonymous:.0f}",
                )
                print("|", *(f"{cell} |" for cell in cells), flush=True)
    finally:
        for folder in (source, grouped, out):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
