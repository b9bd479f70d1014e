"""Convert in the usual way: load the whole model, average its key/value heads in place, save it again.

    python benchmarks/load_pool_save.py SOURCE TARGET --gkv 8

As economical as the approach allows: weights keep their dtype, one layer is pooled at a time, old
projections are freed at once. Sums run in float32, as in gqkva, so that both write the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def mean_pool(weight: Tensor, heads: int, stored: int) -> Tensor:
    """Average neighbours: ``(heads * head_dim, in_features)`` to ``(stored * head_dim, in_features)``."""
    grouped = weight.view(stored, heads // stored, -1, weight.shape[1])
    return grouped.float().mean(dim=1).flatten(0, 1).to(weight.dtype)


def load_pool_save(source: Path, target: Path, gkv: int) -> None:
    """Convert a Llama checkpoint to ``gkv`` key/value heads."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", low_cpu_mem_usage=True)
    heads = model.config.num_key_value_heads
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                pooled = mean_pool(projection.weight, heads, gkv)
                projection.weight = nn.Parameter(pooled, requires_grad=False)
                projection.out_features = pooled.shape[0]
    model.config.num_key_value_heads = gkv
    model.save_pretrained(target, max_shard_size="5GB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--gkv", type=int, required=True)
    arguments = parser.parse_args()
    load_pool_save(arguments.source, arguments.target, arguments.gkv)


if __name__ == "__main__":
    main()
