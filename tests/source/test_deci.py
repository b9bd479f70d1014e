"""DeciLM's form of a Llama keeps every layer's own number of key/value heads, and loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from grouped_pairs import write_pair
from typer.testing import Result

from gqkva_convert import convert, export, inspect, verify
from gqkva_convert.modeling.loading import load_model

Run = Callable[..., Result]


def grouped_model(tmp_path: Path, variant: str, family: str = "llama", **changes: Any) -> Path:
    """A grouped model of three layers."""
    name = f"{family.capitalize()}ForCausalLM"
    model = tiny_models.build(family, name, num_hidden_layers=3, **changes)
    return write_pair(tiny_models.save(model, tmp_path / "source"), variant, tmp_path)[0]


@pytest.mark.parametrize(
    ("family", "variant", "counts", "heads"),
    [
        ("llama", "mixed", [3, 3, 1], 9),  # layers of GQKVA-2.3, groups of 1, 2 and 3 heads, and MQA
        ("llama", "GQA", [2, 2, 2], 6),
        ("mistral", "mixed", [3, 3, 1], 9),
        ("llama", "apart", [4, 4, 4], 8),
    ],
)
def test_layers_keep_their_key_value_heads(
    family: str, variant: str, counts: list[int], heads: int, tmp_path: Path, gqkva: Run
) -> None:
    """Copies would bring back the cache that was saved; the proof and the way back show no loss."""
    changes = {"sliding_window": None} if family == "mistral" else {}
    grouped = grouped_model(tmp_path, variant, family, **changes)
    result = gqkva("export", grouped, tmp_path / "out", "--architecture", "deci")
    assert result.exit_code == 0, result.stderr
    assert "out: deci, " in result.stdout
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "deci"
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert config["num_key_value_heads_per_layer"] == counts
    assert (config["num_attention_heads"], config["head_dim"]) == (heads, 4)
    assert not config.keys() & {"attention_layouts", "auto_map"}
    assert not list((tmp_path / "out").glob("*.py"))
    facts = inspect(tmp_path / "out")
    assert (facts["model_type"], facts["kv_cache_bytes_per_token"]) == ("deci", sum(counts) * 2 * 4 * 4)
    proof = verify(tmp_path / "out", grouped)
    assert proof["passed"], [check for check in proof["checks"] if not check["passed"]]
    again = json.loads((convert(tmp_path / "out", tmp_path / "mqa", gkv=1) / "config.json").read_text())
    assert (again["model_type"], again["num_key_value_heads"]) == ("mistral", 1)
    stock = load_model(export(tmp_path / "out", tmp_path / "back"), "")
    expected = tiny_models.outputs(load_model(grouped, ""))
    torch.testing.assert_close(
        tiny_models.outputs(stock), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


def test_rotary_scaling_is_written_as_readers_of_the_form_know_it(tmp_path: Path) -> None:
    """llama.cpp's converter reads ``rope_theta`` and ``rope_scaling``; a long context depends on them."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    grouped = grouped_model(tmp_path, "mixed", rope_parameters=scaling)
    out = export(grouped, tmp_path / "out", architecture="deci")
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == 5000.0
    assert config["rope_scaling"]["type"] == "llama3"
    assert config["rope_scaling"]["factor"] == 8.0
    back = json.loads((export(out, tmp_path / "back") / "config.json").read_text())
    assert back["rope_parameters"] == scaling
    assert not back.keys() & {"rope_theta", "rope_scaling"}


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("qwen2", {}, "those of a qwen2 differ"),
        ("mistral", {"sliding_window": 7}, "sliding_window 7"),
        ("llama", {"attention_bias": True}, "no biases"),
        ("llama", {"hidden_act": "gelu"}, "this one's gelu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
    ],
)
def test_what_it_lacks_is_refused(
    family: str, changes: dict[str, Any], reason: str, tmp_path: Path, gqkva: Run
) -> None:
    """llama.cpp would run it as something else."""
    grouped = grouped_model(tmp_path, "mixed", family, **changes)
    result = gqkva("export", grouped, tmp_path / "out", "--architecture", "deci")
    assert result.exit_code == 5
    assert reason in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("mistral", {"sliding_window": ...}, "sliding_window 4096"),  # what transformers takes for granted
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ],
)
def test_configurations_written_by_hand_are_refused_too(
    family: str, changes: dict[str, Any], reason: str, tmp_path: Path, gqkva: Run
) -> None:
    """A key that is not there may mean something too."""
    grouped = grouped_model(tmp_path, "mixed", family)
    path = grouped / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    result = gqkva("export", grouped, tmp_path / "out", "--architecture", "deci")
    assert result.exit_code == 5
    assert reason in result.stderr


def test_other_tasks_and_names_are_refused(tmp_path: Path, gqkva: Run) -> None:
    """DeciLM has a language model alone, and no other architecture can be asked for."""
    model = tiny_models.build("llama", "LlamaForTokenClassification")
    grouped, _ = write_pair(tiny_models.save(model, tmp_path / "source"), "mixed", tmp_path)
    result = gqkva("export", grouped, tmp_path / "out", "--architecture", "deci")
    assert result.exit_code == 5
    assert "this is a LlamaForTokenClassification" in result.stderr
    result = gqkva("export", grouped, tmp_path / "out", "--architecture", "dec")
    assert result.exit_code == 2
    assert "no architecture 'dec'" in result.stderr


@pytest.mark.parametrize("counts", [None, [3, 3], [3, 3, 2], [3, 3, True]])
def test_counts_that_cannot_be_are_refused(counts: object, tmp_path: Path, gqkva: Run) -> None:
    """A configuration edited by hand."""
    out = export(grouped_model(tmp_path, "mixed"), tmp_path / "out", architecture="deci")
    path = out / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "num_key_value_heads_per_layer": counts}))
    result = gqkva("inspect", out)
    assert result.exit_code == 4
    assert "must give 3 layers a number each that divides num_attention_heads 9" in result.stderr
