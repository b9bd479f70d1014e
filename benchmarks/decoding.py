"""How much faster a whole model decodes with fewer stored heads, beside what it moves through memory.

    python benchmarks/decoding.py [--device cuda] [--layers 4] [--markdown FILE]

A Llama of Llama-2-7B's width (hidden 4,096, 32 heads of 128, feed-forward 11,008) with a few layers and a
small vocabulary, bfloat16, random weights; one token after a static cache of the given length. Expected: the
ratio of bytes moved, weights and cache, since decoding is bound by memory.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

from gqkva_convert.heads import HeadLayout
from gqkva_convert.modeling.classes import config_class, model_classes
from gqkva_convert.modeling.families import GROUPED_FAMILIES
from gqkva_convert.modeling.layouts import layouts_to_config

HEADS, HEAD_DIM = 32, 128
# Positions for the tokens decoded here.
ROOM = 32
LAYOUTS = {
    "stock MHA": None,
    "stock GQA-8": None,
    "GQKVA-4.8": HeadLayout.gqkva(4, 8, HEAD_DIM),
    "unequal 1+1+2+2+4+6+8+8": HeadLayout.unequal((1, 1, 2, 2, 4, 6, 8, 8), HEAD_DIM),
}


def build(name: str, layers: int, device: str) -> Any:
    """A model of the benchmark's shape with random weights."""
    settings: dict[str, Any] = {
        "vocab_size": 1024,
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": 11_008,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 8 if name == "stock GQA-8" else HEADS,
        "num_hidden_layers": layers,
        "max_position_embeddings": 65_536,
    }
    layout = LAYOUTS[name]
    torch.manual_seed(0)
    with torch.device(device):
        if layout is None:
            return LlamaForCausalLM._from_config(LlamaConfig(**settings), dtype=torch.bfloat16).eval()
        layouts = layouts_to_config({("self", layer): layout for layer in range(layers)})
        family = GROUPED_FAMILIES["llama"]
        config = config_class(family)(**settings, attention_layouts=layouts)
        return (
            model_classes(family)["GqkvaLlamaForCausalLM"]._from_config(config, dtype=torch.bfloat16).eval()
        )


def cache_of(model: Any, name: str, batch: int, length: int) -> StaticCache:
    """A filled cache of the model's stored heads."""
    layout = LAYOUTS[name]
    heads = layout.num_key_heads if layout else model.config.num_key_value_heads
    cache = StaticCache(config=model.config, max_cache_len=length + ROOM)
    for layer in range(model.config.num_hidden_layers):
        keys, values = (
            torch.randn(batch, heads, length, HEAD_DIM, device=model.device, dtype=torch.bfloat16)
            for _ in range(2)
        )
        cache.update(keys, values, layer)
    return cache


def step_seconds(model: Any, cache: StaticCache, batch: int) -> float:
    """Time of one decoding step."""
    token = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
    synchronise = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    with torch.inference_mode():
        synchronise()
        began = time.perf_counter()
        model(token, past_key_values=cache, use_cache=True)
        synchronise()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--length", type=int, nargs="*", default=[4096, 16_384])
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    found: dict[tuple[int, int, str], tuple[float, float, float]] = {}
    models = {name: build(name, arguments.layers, arguments.device) for name in LAYOUTS}
    for batch in arguments.batch:
        for length in arguments.length:
            caches = {name: cache_of(model, name, batch, length) for name, model in models.items()}
            times: dict[str, list[float]] = {name: [] for name in models}
            for number in range(arguments.rounds + 2):  # the first two are not counted
                for name, model in models.items():
                    seconds = step_seconds(model, caches[name], batch)
                    if number >= 2:
                        times[name].append(seconds)
            for name, model in models.items():
                weights = sum(p.nbytes for key, p in model.named_parameters() if "embed_tokens" not in key)
                moved = weights + sum(x.keys.nbytes + x.values.nbytes for x in caches[name].layers)
                middle = statistics.median(times[name])
                spread = (max(times[name]) - min(times[name])) / middle
                found[batch, length, name] = moved / 1e9, 1e3 * middle, spread
            del caches
            gc.collect()
    lines = [
        "| batch | length | model | moved, GB | ms a token | spread | faster than MHA | expected | share |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (batch, length, name), (moved, milliseconds, spread) in sorted(found.items(), key=lambda x: x[0][:2]):
        base = found[batch, length, "stock MHA"]
        faster, expected = base[1] / milliseconds, base[0] / moved
        lines.append(
            f"| {batch} | {length:,} | {name} | {moved:.2f} | {milliseconds:.1f} | {spread:.0%} | "
            f"{faster:.2f} x | {expected:.2f} x | {faster / expected:.0%} |"
        )
    text = "\n".join(lines)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
