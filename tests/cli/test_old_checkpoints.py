"""Checkpoints of old versions of transformers through every command that loads models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learners
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

from gqkva_convert.checkpoint.folder import PICKLED, SAFETENSORS

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 as transformers saves it today."""
    sizes = {"n_inner": 48, "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64}
    return learners.make_decoder(tmp_path_factory.mktemp("plain") / "gpt2", "gpt2", **sizes)


@pytest.fixture(scope="module", params=[pytest.param("safetensors", marks=pytest.mark.slow), "bin"])
def old(plain: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The same with the masks that transformers saved once, tied copies, and no class named."""
    folder = tmp_path_factory.mktemp("old") / "gpt2"
    shutil.copytree(plain, folder)
    tensors = load_file(folder / SAFETENSORS)
    for layer in range(2):
        mask = torch.ones(64, 64, dtype=torch.uint8).tril()[None, None]
        tensors |= {f"transformer.h.{layer}.attn.bias": mask}
        tensors |= {f"transformer.h.{layer}.attn.masked_bias": torch.tensor(-1e4)}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    (folder / SAFETENSORS).unlink()
    if request.param == "bin":
        torch.save(tensors, folder / PICKLED)
    else:
        save_file(tensors, folder / SAFETENSORS, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for key in ("architectures", "tie_word_embeddings", "dtype", "transformers_version"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learners.write_texts(tmp_path_factory.mktemp("data") / "texts.jsonl")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def _value(result: Any, name: str) -> float:
    return next(float(each["value"]) for each in result["metrics"] if name in each["metric"])


def test_it_is_measured_and_is_the_model_that_it_was(
    old: Path, plain: Path, data: Path, tmp_path: Path, gqkva: Run
) -> None:
    """`evaluate --against` refused the masks, although `convert` took them."""
    told = ("--data", data, "--length", 16, "--json")
    (found,) = json.loads(done(gqkva("evaluate", old, "--against", plain, *told)).stdout)
    (alone,) = json.loads(done(gqkva("evaluate", plain, *told)).stdout)
    assert _value(found, "perplexity") == _value(alone, "perplexity")
    assert _value(found, "KL") == pytest.approx(0, abs=1e-6)
    assert not list(tmp_path.iterdir())


def test_it_is_converted_with_data_searched_verified_and_measured_for_speed(
    old: Path, data: Path, tmp_path: Path, gqkva: Run
) -> None:
    """Calibration, and the search by loss, load the source; `verify` and `bench` the result."""
    calibration = ("--calibration", data, "--calibration-samples", 8, "--calibration-length", 16)
    done(gqkva("plan", old, "--gkv", 2, "--out", tmp_path / "plan.json", *calibration))
    out = tmp_path / "out"
    done(gqkva("convert", old, out, "--gkv", 2, "--refine", "output", *calibration))
    done(gqkva("verify", out, "--against", old))
    assert not any(".attn.bias" in name or "masked" in name for name in load_file(out / SAFETENSORS))
    done(gqkva("bench", out, "--against", old, "--context", 8, "--new-tokens", 4, "--rounds", 1))


def test_it_teaches_and_is_trained(old: Path, data: Path, tmp_path: Path, gqkva: Run) -> None:
    """`--teacher` refused the masks, too."""
    done(gqkva("convert", old, tmp_path / "gqa", "--gkv", 2))
    given = ("--data", data, "--length", 16, "--tokens", 512, "--batch-size", 8, "--set", "held_out_rows=8")
    done(gqkva("uptrain", tmp_path / "gqa", tmp_path / "out", "--teacher", old, *given))
    done(gqkva("verify", tmp_path / "out", "--against", old))
    done(gqkva("uptrain", old, tmp_path / "more", "--any-model", "--loss", "task=1", *given))
    done(gqkva("evaluate", tmp_path / "more", "--against", old, "--data", data, "--length", 16))
