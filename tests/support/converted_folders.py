"""Converted and verified folders, made once, and a Hub on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_models
from hub_server import HubState, running_hub, use_hub

from gqkva_convert import convert, verify

SOURCE_CARD = """---
license: apache-2.0
language: [en, fr]
tags: [small, "dataset:secret"]
pipeline_tag: text-generation
---

# A tiny model
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A converted, verified folder: ``stock`` (GQA) or ``grouped`` (GQKVA), in shards; do not change it."""
    kinds = {"stock": {"gkv": 2}, "grouped": {"gq": 2, "gkv": 3}}
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            root = tmp_path_factory.mktemp("made")
            model = tiny_models.build("llama", "LlamaForCausalLM")
            source = tiny_models.save(model, root / "source", max_shard_size="14KB")
            (source / "README.md").write_text(SOURCE_CARD)
            (source / "LICENSE").write_text("Apache License\nVersion 2.0\n")
            folders[kind] = convert(source, root / f"tiny-{kind}", **kinds[kind])
            assert verify(folders[kind])["passed"]
        return folders[kind]

    return folder


@pytest.fixture
def stock(made: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the stock folder, free to be damaged."""
    return shutil.copytree(made("stock"), tmp_path / "tiny-stock")


@pytest.fixture
def grouped(made: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the grouped folder, free to be damaged."""
    return shutil.copytree(made("grouped"), tmp_path / "tiny-grouped")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubState]:
    """An empty Hub; waiting between tries takes no time."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    with running_hub() as state:
        use_hub(state, tmp_path / "cache", monkeypatch)
        yield state
