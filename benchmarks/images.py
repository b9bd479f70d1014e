"""Measure how many images per second one process prepares for training: decode, scale, normalise, augment.

    python benchmarks/images.py --rounds 7

The images are noise under a smooth ramp, as JPEG files of quality 90; their content hardly changes the time.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

import gqkva_convert
from gqkva_convert.uptraining.rows.images import ImageBatches

# Side of the model's input, and of the images in the file.
CASES = {"CIFAR-10": (32, (32, 32)), "ImageNet": (224, (500, 375))}


def jpeg(size: tuple[int, int], seed: int) -> dict[str, bytes]:
    """Return an image as `datasets` stores it."""
    ramp = np.linspace(0, 200, size[1])[:, None, None]
    noise = np.random.default_rng(seed).integers(0, 56, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray((ramp + noise).astype(np.uint8)).save(file, "JPEG", quality=90)
    return {"bytes": file.getvalue()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with TemporaryDirectory() as folder:
        for name, (side, size) in CASES.items():
            config = Path(folder) / f"{side}.json"
            config.write_text(json.dumps({"image_size": side, "patch_size": side // 8}))
            gqkva_convert.init("vit", Path(folder) / name, config=config)
            records = [{"image": jpeg(size, seed), "label": 0} for seed in range(arguments.batch)]
            for augment in (None, "shift", "randaugment"):
                batches = ImageBatches(Path(folder) / name, ("image", "label"), 10, augment)
                batches.batch(records, range(arguments.batch))
                times = []
                for _ in range(arguments.rounds):
                    started = time.perf_counter()
                    batches.batch(records, range(arguments.batch))
                    times.append(time.perf_counter() - started)
                rate = arguments.batch / statistics.median(times)
                rows.append({"images": name, "augment": augment, "per second": round(rate)})
                print(f"{name:9} {augment or 'unchanged':11} {rate:7,.0f} images/s")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
