"""Tiny checkpoints on disk, made once a session, and the command line."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: test processes beside each other share the cores.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    _share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _share)))

import tiny_models
import transformers
from typer.testing import CliRunner, Result

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.cli import app

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    """Keep what imports have made out of every later garbage collection, which costs half a second each.

    Commands collect where a model has been deleted; a suite does that a thousand times.
    """
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a family's tiny checkpoint, as `save_pretrained` writes it; do not change it."""
    made: dict[str, Path] = {}

    def folder(model_type: str) -> Path:
        if model_type not in made:
            model = tiny_models.build(model_type, FAMILIES[model_type].architecture)
            made[model_type] = tiny_models.save(model, tmp_path_factory.mktemp("tiny") / model_type)
        return made[model_type]

    return folder


@pytest.fixture
def llama(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny Llama in five shards, free to be damaged."""
    model = tiny_models.build("llama", "LlamaForCausalLM")
    return tiny_models.save(model, tmp_path / "llama", max_shard_size="14KB")


@pytest.fixture
def gqkva() -> Callable[..., Result]:
    """Run the command line in this process."""

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Real checkpoints beside the repository."""
    folder = SHARED / "models"
    if not folder.is_dir():
        pytest.skip(f"real checkpoints are not here: {folder} does not exist")
    return folder
