"""Shards written by many threads: the same bytes as by one, every block merged once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from threadpoolctl import threadpool_info, threadpool_limits

from gqkva_convert import convert, verify
from gqkva_convert.steps import execute, merged_blocks


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 Llama with products large enough for BLAS to divide over threads."""
    sizes = {"hidden_size": 384, "head_dim": 64, "num_hidden_layers": 3}
    model = tiny_models.build("llama", "LlamaForCausalLM", **sizes).to(torch.bfloat16)
    return tiny_models.save(model, tmp_path_factory.mktemp("execute") / "half")


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("merge", ["closed-form", "mean"])
def test_the_number_of_threads_does_not_change_a_byte(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: str
) -> None:
    """A conversion is the same on every machine of a kind."""
    found = []
    for threads in (1, 2, 16):
        monkeypatch.setattr(execute, "_usable_cores", lambda threads=threads: threads)
        with threadpool_limits(min(threads, 2), user_api="blas"):
            found.append(
                shards(convert(half, tmp_path / f"{threads}", gkv=2, merge=merge, max_shard_size="1MB"))
            )
    assert len(found[0]) > 2
    assert found[0] == found[1] == found[2]


def test_what_many_threads_wrote_one_recomputes(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner proves a conversion on a smaller machine than it was made on."""
    monkeypatch.setattr(execute, "_usable_cores", lambda: 16)
    with threadpool_limits(2, user_api="blas"):
        out = convert(half, tmp_path / "out", gq=3, gkv=2, max_shard_size="1MB")
    with threadpool_limits(1, user_api="blas"):
        checks = {check["check"]: check for check in verify(out, half)["checks"]}
    assert checks["recomputed from the source"]["passed"], checks


def test_a_block_in_several_files_is_merged_once(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merging is most of a conversion's work, and shards begin anywhere."""
    merged: Counter[Any] = Counter()
    merge_block = merged_blocks.merge_block

    def counted(merge: Any, *arguments: Any) -> Any:
        merged[merge.block.place] += 1
        return merge_block(merge, *arguments)

    monkeypatch.setattr(merged_blocks, "merge_block", counted)
    out = convert(half, tmp_path / "out", gkv=2, max_shard_size="150KB")
    holders = Counter(
        name.rpartition(".self_attn")[0]
        for path in out.glob("*.safetensors")
        for name in {
            key.rpartition(".self_attn")[0] + ".self_attn" for key in load_file(path) if "_proj" in key
        }
        if name
    )
    assert max(holders.values()) > 1
    assert merged == {("self", layer): 1 for layer in range(3)}


def test_blas_gets_its_threads_back(half: Path, tmp_path: Path) -> None:
    """A program that converts goes on computing with all cores."""
    np.eye(2) @ np.eye(2)
    with threadpool_limits(2, user_api="blas"):
        before = [library["num_threads"] for library in threadpool_info()]
        convert(half, tmp_path / "out", gkv=2)
        assert [library["num_threads"] for library in threadpool_info()] == before
