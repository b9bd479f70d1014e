"""Trials by the hundred, drawn from a seed: `GQKVA_TRIALS` of each kind, or a few; told at the end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import learners
import pytest
import tiny_models
from warm_children import Children, warm_children

FOUND: Counter[str] = Counter()
# Exit codes that docs/errors.md lists.
CODES = {0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14}


def mostly_slow(names: Iterable[str], quick: Iterable[str]) -> list[Any]:
    """Return parameters of which all but a few are slow."""
    chosen = set(quick)
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture
def trials() -> int:
    """Trials of each kind."""
    return int(os.environ.get("GQKVA_TRIALS", "2"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FOUND:
        terminalreporter.section("reliability")
        for kind, count in sorted(FOUND.items()):
            terminalreporter.write_line(f"{kind}: {count:,}")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read: a source in shards, a conversion of it, data."""
    from gqkva_convert import convert

    root = tmp_path_factory.mktemp("read")
    source = learners.make_decoder(root / "source")
    model = tiny_models.load(source, "LlamaForCausalLM")
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="150KB")
    convert(source, root / "converted", gkv=2, merge="mean")
    convert(source, root / "older", gkv=1)
    learners.write_texts(root / "data.jsonl", count=40)
    return root


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """Commands in processes of their own."""
    root = tmp_path_factory.mktemp("children")
    with warm_children(
        root / "answers", {"HF_HOME": str(root / "home"), "GQKVA_CACHE": "/nowhere"}
    ) as started:
        yield started
