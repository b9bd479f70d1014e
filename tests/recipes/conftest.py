"""A small recipe: half the heads of a tiny model, measured."""

from __future__ import annotations

from pathlib import Path

import learners
import pytest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return learners.make_decoder(tmp_path / "mha")


@pytest.fixture
def recipe(source: Path, tmp_path: Path) -> Path:
    """Convert and measure."""
    data = learners.write_texts(tmp_path / "texts.jsonl", 12)
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"description: half the heads\nneeds: nothing\nvariables: {{gkv: 2, model: {source}}}\nsteps:\n"
        "  - convert: {model: '${model}', out: '${work}/gqa', gkv: '${gkv}'}\n"
        f"  - evaluate: {{model: '${{work}}/gqa', data: {data}, length: 32}}\n"
    )
    return file
