"""Make a Llama checkpoint folder of an exact shape, with random weights, in seconds and without torch.

    python benchmarks/make_checkpoint.py 7b FOLDER [--seed 0] [--headers-only]

With ``--headers-only`` the files have their full size and a real header, but their data are holes: enough
to plan a conversion of a model far larger than the disk.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gqkva_convert.checkpoint.dtypes import tensor_bytes
from gqkva_convert.checkpoint.header import build_header
from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.checkpoint.publish import published_folder
from gqkva_convert.checkpoint.writer import ShardWriter

Tensor = tuple[str, str, tuple[int, ...]]

METADATA = {"format": "pt"}
BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Shape:
    """A Llama shape with one key/value head for each attention head.

    Attributes:
        max_shard_bytes: Most bytes of tensors in a file; the default divides Llama-2-7B into three.
    """

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    vocab_size: int = 32000
    max_shard_bytes: int = 4_980_000_000

    @property
    def config(self) -> dict[str, Any]:
        """Return ``config.json`` of the shape, without tokenizer and generation settings."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.num_hidden_layers,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_attention_heads,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": 4096,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "initializer_range": 0.02,
            "attention_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "use_cache": True,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "tiny": Shape(2, 512, 1408, 16, max_shard_bytes=50_000_000),
    "small": Shape(4, 1024, 2816, 16, max_shard_bytes=130_000_000),
    "1b": Shape(22, 2048, 5632, 32),  # TinyLlama with multi-head attention
    "7b": Shape(32, 4096, 11008, 32),  # Llama-2-7B
    "70b": Shape(80, 8192, 28672, 64),  # Llama-2-70B with multi-head attention
}


def tensors_of(shape: Shape) -> Iterator[Tensor]:
    """Return every tensor, in the order of transformers' state dict."""
    hidden, inner, square = shape.hidden_size, shape.intermediate_size, (shape.hidden_size, shape.hidden_size)
    yield "model.embed_tokens.weight", "BF16", (shape.vocab_size, hidden)
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{prefix}.self_attn.{name}.weight", "BF16", square
        yield f"{prefix}.mlp.gate_proj.weight", "BF16", (inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", "BF16", (inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", "BF16", (hidden, inner)
        yield f"{prefix}.input_layernorm.weight", "BF16", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", "BF16", (hidden,)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (shape.vocab_size, hidden)


def divide(shape: Shape) -> dict[str, list[Tensor]]:
    """Return the tensors of each file, divided as by `save_pretrained` and sorted as by safetensors."""
    groups: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors_of(shape):
        nbytes = tensor_bytes(*tensor[1:])
        if groups[-1] and filled + nbytes > shape.max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += nbytes
    if len(groups) == 1:
        return {"model.safetensors": sorted(groups[0])}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": sorted(group)
        for number, group in enumerate(groups, start=1)
    }


def random_block(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return ``(BLOCK_BYTES,)`` of finite bfloat16 numbers, either sign, magnitude from 2**-7 to 2**-3."""
    bits = rng.integers(0, 1 << 16, BLOCK_BYTES // 2, dtype=np.uint16)
    # Sign, the exponent's low two bits and the mantissa stay random; the rest of the exponent is fixed.
    return (bits & np.uint16(0x81FF) | np.uint16(0x3C00)).view(np.uint8)


def write_random(
    path: Path, tensors: list[Tensor], block: npt.NDArray[np.uint8], rng: np.random.Generator
) -> None:
    """Fill a file with pieces of ``block``, each from a random offset in it."""
    with ShardWriter(path, tensors, METADATA) as writer:
        for name, dtype, axes in tensors:
            start, nbytes = 0, tensor_bytes(dtype, axes)
            while start < nbytes:
                place = 2 * int(rng.integers(0, BLOCK_BYTES // 4))  # at least half the block follows
                piece = block[place : place + nbytes - start]
                writer.write(name, start, piece)
                start += piece.nbytes
        writer.finish()


def write_holes(path: Path, tensors: list[Tensor]) -> None:
    """Write a file with a real header and its full size; its data are a hole that takes no disk space."""
    opening, _ = build_header(tensors, METADATA)
    path.write_bytes(opening)
    os.truncate(path, len(opening) + sum(tensor_bytes(dtype, axes) for _, dtype, axes in tensors))


def make_checkpoint(shape: Shape, folder: Path, *, seed: int = 0, headers_only: bool = False) -> None:
    """Write a whole checkpoint folder, or none if it fails."""
    rng = np.random.default_rng(seed)
    block = random_block(rng)
    files = divide(shape)
    with published_folder(folder, overwrite=False) as scratch:
        for name, tensors in files.items():
            if headers_only:
                write_holes(scratch / name, tensors)
            else:
                write_random(scratch / name, tensors, block, rng)
        if len(files) > 1:
            weight_map = {tensor[0]: name for name, tensors in files.items() for tensor in tensors}
            total = sum(tensor_bytes(*tensor[1:]) for tensors in files.values() for tensor in tensors)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            write_json(scratch / "model.safetensors.index.json", index)
        write_json(scratch / "config.json", shape.config)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--headers-only", action="store_true")
    arguments = parser.parse_args()
    make_checkpoint(
        SHAPES[arguments.shape], arguments.folder, seed=arguments.seed, headers_only=arguments.headers_only
    )


if __name__ == "__main__":
    main()
