"""What a proof allows, through the command line: rules, names of tensors, the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from typer.testing import Result

from gqkva_convert.architectures import NATIVE
from gqkva_convert.derivation import proof, stock
from gqkva_convert.derivation.stock import build, stock_config
from gqkva_convert.derivation.table import small_config

Command = Callable[..., Result]


def saved(name: str, folder: Path, **changes: Any) -> Path:
    """A small stock model of two layers."""
    config = stock_config(name, small_config(stock_config(name, {"num_hidden_layers": 2, **changes})))
    build(config, NATIVE[name].architecture).float().save_pretrained(folder)
    return folder


def test_clamps_leave_the_mean_which_is_said(gqkva: Command, tmp_path: Path) -> None:
    """With OLMoE's clip_qkv mixed features do not come back; a rule that mixes them is refused."""
    source = saved("olmoe", tmp_path / "source", clip_qkv=8.0)
    result = gqkva("convert", source, tmp_path / "out", "--gkv", 2)
    assert result.exit_code == 0, result.output
    assert "merged by mean: other rules mix features, which this olmoe configuration does not allow" in (
        result.output
    )
    report = json.loads((tmp_path / "out" / "gqkva_report.json").read_text())
    assert report["plan"]["merge"] == "mean"
    assert not report["family_proof"]["licences"]["values"]
    for command in (
        ("convert", source, tmp_path / "other"),
        ("plan", source, "--out", tmp_path / "plan.json"),
    ):
        refused = gqkva(*command, "--gkv", 2, "--merge", "closed-form")
        assert refused.exit_code == 2
        assert "use --merge mean" in refused.output


def test_a_plan_made_elsewhere_needs_a_licence(gqkva: Command, tmp_path: Path) -> None:
    free = saved("olmoe", tmp_path / "free")
    assert gqkva("plan", free, "--out", tmp_path / "plan.json", "--gkv", 2).exit_code == 0
    clamped = saved("olmoe", tmp_path / "clamped", clip_qkv=8.0)
    refused = gqkva("convert", clamped, tmp_path / "out", "--plan", tmp_path / "plan.json")
    assert refused.exit_code == 2
    assert "--merge closed-form mixes features" in refused.output


def test_tensors_of_other_names_are_refused(gqkva: Command, tmp_path: Path) -> None:
    """One that the class does not store, inside a part that is copied, and one that it does and is absent."""
    source = saved("granite", tmp_path / "source")
    file = source / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    more = tensors | {"model.layers.0.mlp.scale": tensors["model.norm.weight"].clone()}
    safetensors.torch.save_file(more, file, metadata={"format": "pt"})
    refused = gqkva("convert", source, tmp_path / "out", "--gkv", 2)
    assert refused.exit_code == 4
    assert "stores 'model.layers.0.mlp.scale', unlike transformers' own" in refused.output
    less = {name: tensor for name, tensor in tensors.items() if "mlp.down_proj" not in name}
    safetensors.torch.save_file(less, file, metadata={"format": "pt"})
    refused = gqkva("convert", source, tmp_path / "out", "--gkv", 2)
    assert refused.exit_code == 4
    assert "does not store 'model.layers.N.mlp.down_proj.weight'" in refused.output


def test_a_proof_is_made_once(gqkva: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same configuration again needs none; another one does."""
    source = saved("granite", tmp_path / "source")
    assert gqkva("convert", source, tmp_path / "one", "--gkv", 2).exit_code == 0

    def never(*_: Any) -> Any:
        raise AssertionError("proved again")

    monkeypatch.setattr(proof, "prove", never)
    assert gqkva("convert", source, tmp_path / "two", "--gkv", 1).exit_code == 0
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"attention_multiplier": 0.5}))
    assert isinstance(gqkva("convert", source, tmp_path / "three", "--gkv", 2).exception, AssertionError)


def test_other_variants_are_refused(gqkva: Command, tmp_path: Path) -> None:
    source = saved("granite", tmp_path / "source")
    refused = gqkva("convert", source, tmp_path / "out", "--gq", 2)
    assert refused.exit_code == 4
    assert "gives stock checkpoints alone" in refused.output
    shown = json.loads(gqkva("inspect", source, "--json").stdout)
    assert {option["gq"] for option in shown["options"]} == {None}


def test_a_key_that_is_not_known_is_refused(gqkva: Command, tmp_path: Path) -> None:
    source = saved("granite", tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"attention_sinks": 4}))
    refused = gqkva("convert", source, tmp_path / "out", "--gkv", 2)
    assert refused.exit_code == 4
    assert "attention_sinks" in refused.output


def test_inspect_answers_in_one_line(gqkva: Command, tmp_path: Path) -> None:
    source = saved("granite", tmp_path / "source")
    assert "supported: the table of granite is generated, proved on" in gqkva("inspect", source).output
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "gpt_oss"}))
    refused = gqkva("inspect", source)
    assert refused.exit_code == 4
    assert "no family table for model_type 'gpt_oss': it has parameters that no table can place: sinks" in (
        refused.output
    )


def test_a_type_that_transformers_lacks_is_refused(
    gqkva: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version, which has fewer types."""
    source = saved("granite", tmp_path / "source")
    monkeypatch.setattr("transformers.GraniteForCausalLM", None)
    refused = gqkva("convert", source, tmp_path / "out", "--gkv", 2)
    assert refused.exit_code == 4
    assert "has no class GraniteForCausalLM; install a later version" in refused.output


def test_a_small_configuration_keeps_what_is_no_size() -> None:
    """Sizes alone change: flags, ratios of heads and kinds of layers stay."""
    config = stock_config("cohere2", {"num_hidden_layers": 30})
    small = small_config(config)
    assert small["num_attention_heads"] % small["num_key_value_heads"] == 0
    assert set(small["layer_types"]) == set(config.layer_types)
    assert len(small["layer_types"]) == small["num_hidden_layers"] == 8
    assert stock.stock_config("cohere2", small).hidden_size == 64
