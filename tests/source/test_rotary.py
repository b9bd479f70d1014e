"""What a configuration says of rotary positions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import Result

from gqkva_convert.source.model import open_model
from gqkva_convert.source.rotary import rotary_frequencies, rotary_planes

Run = Callable[..., Result]


@pytest.mark.parametrize("value", [1.5, -0.5, float("inf"), float("nan")])
def test_a_share_that_cannot_turn_is_refused(
    value: float, tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """Steps name the planes that turn, so that no merge gets as far as features that do not exist."""
    (source := tmp_path / "source").mkdir()
    for file in tiny("stablelm").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config["partial_rotary_factor"] = value
    config["rope_parameters"] = None
    (source / "config.json").write_text(json.dumps(config))
    result = gqkva("convert", source, tmp_path / "out", "--gkv", 2, "--dry-run")
    assert result.exit_code == 4, result.output
    assert f"partial_rotary_factor must be from 0 to 1, found {value}" in result.stderr


LONG = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
# Keys of rotary positions as config.json has had them, by family.
SPELLINGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_theta": 5e5}),
    ("llama", {"rope_theta": 5e5, "rope_scaling": None}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2}}),
    ("llama", {"rope_scaling": {"factor": 2.0}}),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 5e5}),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ("llama", {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5}),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}),
    # transformers reads the older key where both are there.
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 7.0}}),
    ("mistral", {"rope_theta": 1e6}),
    ("gemma", {"rope_theta": 1e6}),
    ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}),
    ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 1e6}),
    ("phi3", {"rope_scaling": {"type": "longrope", **LONG}, "original_max_position_embeddings": 32}),
    ("phi3", {"rope_scaling": {"type": "yarn", **LONG}, "original_max_position_embeddings": 32}),
    ("phi3", {"rope_scaling": {"type": "su", "original_max_position_embeddings": 32, **LONG}}),
    ("phi3", {"rope_scaling": {"rope_type": "su", "original_max_position_embeddings": 32, **LONG}}),
    ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 5000}),
    ("gpt_neox", {"rotary_pct": 1.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    (
        "stablelm",
        {"partial_rotary_factor": 0.5, "rope_theta": 5000, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    ("phi", {"partial_rotary_factor": 0.5, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    ("olmo", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ("olmo2", {"rope_theta": 5e5}),
    ("starcoder2", {"rope_theta": 999999.4420358813}),
]


def respelled(tiny: Callable[[str], Path], tmp_path: Path, model_type: str, settings: dict[str, Any]) -> Path:
    """A family's tiny checkpoint with the rotary settings under other keys."""
    folder = shutil.copytree(tiny(model_type), tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize(("model_type", "settings"), SPELLINGS)
def test_frequencies_are_those_of_the_stock_model(
    model_type: str, settings: dict[str, Any], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Whatever the keys are called; a merge by other frequencies would be worse and nobody would know why."""
    folder = respelled(tiny, tmp_path, model_type, settings)
    model = open_model(folder)
    planes = rotary_planes(model, model.blocks[0])
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (expected,) = (buffer for name, buffer in stock.named_buffers() if name.endswith("rotary_emb.inv_freq"))
    found = rotary_frequencies(planes.config, len(planes.first))
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float32), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("phi3", {"rope_scaling": {"type": "su", **LONG, "original_max_position_embeddings": 32}}),
        ("phi3", {"rope_scaling": {"type": "yarn", **LONG}, "original_max_position_embeddings": 32}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ],
)
@pytest.mark.parametrize("merge", ["mean", "closed-form"])
def test_models_with_old_names_of_rotary_settings_are_converted_and_verified(
    model_type: str,
    settings: dict[str, Any],
    merge: str,
    tiny: Callable[[str], Path],
    tmp_path: Path,
    gqkva: Run,
) -> None:
    """Phi-3's first long models ended in a traceback."""
    folder = respelled(tiny, tmp_path, model_type, settings)
    result = gqkva("convert", folder, tmp_path / "out", "--gkv", 2, "--merge", merge)
    assert result.exit_code == 0, result.output
    assert gqkva("verify", tmp_path / "out", "--against", folder).exit_code == 0
    assert gqkva("inspect", tmp_path / "out").exit_code == 0


@pytest.mark.parametrize(
    ("model_type", "settings", "words"),
    [
        (
            "phi3",
            {"rope_scaling": {"type": "su", **LONG}, "original_max_position_embeddings": 32},
            "'longrope' now",
        ),
        ("llama", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}}, "'mrope' are not known"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor of rope_scaling"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "Missing required keys"),
        (
            "qwen2",
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
            "something else for each type of layer (full_attention)",
        ),
    ],
)
def test_rotary_settings_that_transformers_refuses_are_refused(
    model_type: str,
    settings: dict[str, Any],
    words: str,
    tiny: Callable[[str], Path],
    tmp_path: Path,
    gqkva: Run,
) -> None:
    """The result would not load either."""
    folder = respelled(tiny, tmp_path, model_type, settings)
    for merge in ("mean", "closed-form"):
        result = gqkva("convert", folder, tmp_path / "out", "--gkv", 2, "--merge", merge)
        assert (result.exit_code, result.stderr.count("\n")) == (4, 1), result.output
        assert words in result.stderr
    with pytest.raises(Exception):  # noqa: B017 - whatever transformers raises
        transformers.AutoModelForCausalLM.from_pretrained(folder)
