"""Measure time and memory of choosing and merging heads at the size of Llama-2-7B.

    python benchmarks/merging.py --folder DIR [--only layer,search,calibrate]

DIR gets (or holds) a 13.5 GB checkpoint of random weights (`make_checkpoint.py 7b`). It measures the
closed form of one layer, 32 heads to 8, and how far it is from one in float64 throughout; the searches for
32 layers of 32 heads from ready statistics; and calibration with a few short samples, for memory. Rounds gain
nothing on random weights and would stop early, so the closed form is made to run all of them.
`conversion.py` times a whole conversion.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from make_checkpoint import main as make_checkpoint
from measure import run_process

from gqkva_convert.grouping.statistics import BlockStatistics
from gqkva_convert.heads import Variant
from gqkva_convert.planning.groups import search_groups
from gqkva_convert.plans.plan import make_plan
from gqkva_convert.source.model import open_model
from gqkva_convert.source.stored_block import gain_moments, read_heads
from gqkva_convert.steps.blocks import block_merges
from gqkva_convert.transforms import scores
from gqkva_convert.transforms.blocks import InputMoments, merge_heads

LAYERS, HEADS, HEAD_DIM = 32, 32, 128


def measured_moments(width: int) -> InputMoments:
    """Return moments like those of calibration: a few strong directions, the rest weak."""
    random = np.random.default_rng(0)
    directions = random.standard_normal((width, width)) / np.sqrt(width)
    moment = (directions * (1 / (1 + np.arange(width)))) @ directions.T
    return InputMoments(moment, moment)


def one_layer(checkpoint: Path) -> dict[str, float]:
    """Return the seconds of the closed form for one layer, with moments from weights and measured ones.

    Also the largest difference of a merged head from one made in float64 throughout, relative to its size.
    """
    model = open_model(checkpoint)
    plan = make_plan(model, Variant(None, 8))
    merge = block_merges(model, plan)["self", 0]
    stop_early, scores._ENOUGH = scores._ENOUGH, -1.0  # every round is run
    with model.checkpoint.reader() as reader:
        heads, gains = read_heads(merge.block, reader), gain_moments(merge.block, reader)
    seconds = {}
    for name, moments in (("weights alone", None), ("measured moments", measured_moments(4096))):
        started = time.perf_counter()
        merge_heads(merge.head_merge(), heads, gains, moments)
        seconds[name] = time.perf_counter() - started
    scores._ENOUGH = stop_early
    wide = {role: found.astype(np.float64) for role, found in heads.items()}
    one, other = (merge_heads(merge.head_merge(), each, gains, None) for each in (heads, wide))
    seconds["difference from float64"] = max(
        float(np.linalg.norm(one[name] - other[name]) / np.linalg.norm(other[name])) for name in one
    )
    return seconds


def searches() -> dict[str, float]:
    """Return the seconds of each search for all layers, one after the other."""
    random = np.random.default_rng(0)
    heads = random.standard_normal((HEADS * HEAD_DIM, 512))
    heads += np.repeat(random.standard_normal((8, HEAD_DIM, 512)), 4, axis=0).reshape(-1, 512)
    products = heads @ heads.T
    readers = np.stack([reader @ reader.T for reader in random.standard_normal((HEADS, HEAD_DIM, 512))])
    planes = tuple(range(HEAD_DIM // 2)), tuple(range(HEAD_DIM // 2, HEAD_DIM))
    block = BlockStatistics(HEAD_DIM, *planes, products, products, np.zeros((0, 0)), readers, readers)
    seconds = {}
    for grouping in ("activations", "asym", "loss"):
        started = time.perf_counter()
        for layer in range(LAYERS):
            search_groups(block, grouping, 8, str(layer))
        seconds[grouping] = time.perf_counter() - started
    return seconds


CALIBRATE = """
from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.checkpoint.hub import locate
from gqkva_convert.source.model import open_model
from gqkva_convert.refinement.calibrated import CalibratedModel
located = locate({folder}, None)
CalibratedModel(located, open_model(located.folder), {settings}).moments
"""


def timed(command: list[str]) -> dict[str, float]:
    """Return the seconds and the peak memory of a whole process."""
    found = run_process(command)
    if found.exit_status:
        print(found.error, file=sys.stderr)
    return {
        "exit status": found.exit_status,
        "seconds": found.seconds,
        "peak GiB": found.peak_rss_bytes / 2**30,
        "anonymous GiB": found.peak_anonymous_bytes / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", default="layer,search,calibrate")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    arguments = parser.parse_args()
    checkpoint = arguments.folder / "7b"
    if not (checkpoint / "config.json").is_file():
        sys.argv = ["make_checkpoint.py", "7b", str(checkpoint)]
        make_checkpoint()
    results: dict[str, Any] = {}
    for part in arguments.only.split(","):
        if part == "layer":
            results[part] = one_layer(checkpoint)
        elif part == "search":
            results[part] = searches()
        else:
            text = arguments.folder / "numbers.txt"
            text.write_text("".join(f"line {number} of the text\n" for number in range(200_000)))
            _byte_tokenizer(checkpoint)
            settings = f"DataSettings({str(text)!r}, {arguments.samples}, {arguments.length})"
            results[part] = timed(
                [sys.executable, "-c", CALIBRATE.format(folder=repr(str(checkpoint)), settings=settings)]
            )
        print(json.dumps({part: results[part]}, indent=1), flush=True)
    print(f"{datetime.date.today()}, {platform.machine()}, numpy {np.__version__}, seed 0")


def _byte_tokenizer(checkpoint: Path) -> None:
    """Write a tokenizer for the checkpoint of random weights."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!").save_pretrained(checkpoint)


if __name__ == "__main__":
    main()
