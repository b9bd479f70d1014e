"""What inspect says must be what transformers builds and conversions give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from grouped_pairs import write_pair
from safetensors.torch import load_file, save_file
from typer.testing import Result

from gqkva_convert import convert, inspect
from gqkva_convert.architectures import FAMILIES, Family
from gqkva_convert.checkpoint.folder import PICKLED, SAFETENSORS
from gqkva_convert.modeling.families import GROUPED_FAMILIES

Run = Callable[..., Result]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_parameters_are_counted_as_transformers_counts_them(
    family: Family, tiny: Callable[[str], Path]
) -> None:
    """Nobody would trust a KV-cache figure beside a wrong parameter count."""
    name = family.model_type
    facts = inspect(tiny(name))
    model = tiny_models.load(tiny(name), family.architecture)
    total = model.num_parameters()
    assert facts["parameters"]["total"] == total
    assert sum(count for part, count in facts["parameters"].items() if part != "total") == total
    attention = sum(
        p.numel()
        for n, p in model.named_parameters()
        if any(word in n for word in ("q_proj", "query", "c_attn", ".q.", "q_lin", "qkv"))
    )
    assert facts["parameters"]["attention"] > attention > 0


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_the_count_is_that_of_every_class_and_of_pickles_with_both_copies(
    family: Family, tmp_path: Path
) -> None:
    """A pickle stores tied tensors twice, and a class has heads and buffers of its own."""
    counted, meant = {}, {}
    classes: list[tuple[str, dict[str, Any]]] = [(family.architecture, {"tie_word_embeddings": False})]
    classes += [(name, {}) for name in GROUPED_FAMILIES[family.model_type].stock_classes]
    for name, changes in classes:
        model = tiny_models.build(family.model_type, name, **changes)
        folder = tiny_models.save(model, tmp_path / f"{name}{bool(changes)}")
        pickled = tmp_path / f"{name}{bool(changes)}-bin"
        pickled.mkdir()
        (pickled / "config.json").write_bytes((folder / "config.json").read_bytes())
        torch.save(_with_copies(model, load_file(folder / SAFETENSORS)), pickled / PICKLED)
        for place in (folder, pickled):
            counted[place.name] = inspect(place)["parameters"]["total"]
            meant[place.name] = model.num_parameters()
    assert counted == meant


def _with_copies(model: Any, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add the tied tensors that `save_pretrained` leaves out."""
    tied = model.all_tied_weights_keys or {}
    return stored | {copy: stored[original] for copy, original in tied.items() if original in stored}


OLD_BUFFERS = {
    "gpt2": {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 20, 20, dtype=torch.uint8),
        "transformer.h.1.attn.bias": torch.ones(1, 1, 20, 20, dtype=torch.bool),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    },
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool),
        "gpt_neox.layers.1.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1),
    },
    "bert": {"bert.embeddings.position_ids": torch.arange(20)[None]},
    "clip": {"text_model.embeddings.position_ids": torch.arange(20)[None]},
    "llama": {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(2)},
    "bart": {"encoder.version": torch.tensor([3.0]), "model.decoder.version": torch.tensor([3.0])},
}


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("name", OLD_BUFFERS)
def test_buffers_of_old_checkpoints_are_no_parameters(
    name: str, pickled: bool, tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """A mask of a million bytes made a conversion look as if it had saved a fifth of the model."""
    folder = tmp_path / "old"
    shutil.copytree(tiny(name), folder)
    tensors = load_file(folder / SAFETENSORS) | OLD_BUFFERS[name]
    if pickled:
        (folder / SAFETENSORS).unlink()
        torch.save(tensors, folder / PICKLED)
    else:
        save_file(tensors, folder / SAFETENSORS, metadata={"format": "pt"})
    before, after = (json.loads(gqkva("inspect", f, "--json").stdout) for f in (tiny(name), folder))
    assert after["parameters"] == before["parameters"]
    assert after["options"] == before["options"]
    assert after["buffers"]["tensors"] == before["buffers"]["tensors"] + len(OLD_BUFFERS[name])
    assert f"in {after['buffers']['tensors']} buffers" in gqkva("inspect", folder).stdout
    converted = gqkva("convert", folder, tmp_path / "out", "--gkv", 2)
    assert converted.exit_code == 0, converted.output
    report = json.loads((tmp_path / "out" / "gqkva_report.json").read_text())
    assert report["source"]["parameters"] == before["parameters"]["total"]
    made = json.loads(gqkva("inspect", tmp_path / "out", "--json").stdout)
    assert report["parameters"] == made["parameters"]["total"]
    (option,) = (row for row in before["options"] if (row["gq"], row["gkv"]) == (None, 2))
    assert made["parameters"]["total"] == option["parameters"]


@pytest.mark.parametrize("name", ["llama", "phi3", "olmo2", "qwen3", "stablelm"])
def test_kv_bytes_are_those_of_the_cache_that_generation_keeps(
    name: str, tiny: Callable[[str], Path]
) -> None:
    """The one number users come for, measured on the real cache."""
    facts = inspect(tiny(name))
    model = tiny_models.load(tiny(name), FAMILIES[name].architecture)
    with torch.inference_mode():
        cache = model(input_ids=torch.randint(3, 30, (1, 7)), use_cache=True).past_key_values
    measured = sum(
        layer.keys.numel() * layer.keys.element_size() + layer.values.numel() * layer.values.element_size()
        for layer in cache.layers
    )
    assert facts["kv_cache_bytes_per_token"] == measured / 7


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.is_native])
def test_options_promise_what_conversions_give(
    name: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """The table is what a user decides by."""
    facts = inspect(tiny(name))
    options = [option for option in facts["options"] if option["is_stock"]]
    assert [option["gkv"] for option in options] == [3, 2, 1]
    for option in options:
        given = inspect(convert(tiny(name), tmp_path / str(option["gkv"]), gkv=option["gkv"]))
        assert given["parameters"]["total"] == option["parameters"]
        assert given["kv_cache_bytes_per_token"] == option["kv_cache_bytes_per_token"]
        assert given["attention"][0]["variant"] == option["variant"]


def test_layers_of_different_layouts_are_told_apart(
    tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """The first layer's heads would pass for all of them."""
    model = tiny_models.build("llama", "LlamaForCausalLM", num_hidden_layers=4)
    grouped, _ = write_pair(tiny_models.save(model, tmp_path / "source"), "mixed", tmp_path)
    rows = [(row["layers"], row["variant"]) for row in inspect(grouped)["attention"]]
    assert rows == [(2, "GQKVA-2.3"), (1, "unequal GQA-3"), (1, "MQA")]
    shown = gqkva("inspect", grouped).stdout
    assert all(variant in shown for _, variant in rows)


def test_the_options_say_what_is_written(tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run) -> None:
    """A grouped model loads in fewer programs than a stock one."""
    for option in inspect(tiny("llama"))["options"]:
        flags = [f"--{name}={option[name]}" for name in ("gq", "gkv") if option[name] is not None]
        out = tmp_path / option["variant"]
        assert gqkva("convert", tiny("llama"), out, *flags).exit_code == 0
        stock = json.loads((out / "config.json").read_text())["model_type"] == "llama"
        assert stock == option["is_stock"]
        assert inspect(out)["kv_cache_bytes_per_token"] == option["kv_cache_bytes_per_token"]
    assert "not yet" not in gqkva("inspect", tiny("llama")).stdout


def test_encoder_decoder_caches_are_told_apart(tiny: Callable[[str], Path]) -> None:
    """Cross-attention's cache grows with the source, not with what is generated."""
    facts = inspect(tiny("t5"))
    assert facts["kv_cache_bytes_per_token"] == 3 * 2 * 6 * 4 * 4
    assert facts["cross_cache_bytes_per_source_token"] == 3 * 2 * 6 * 4 * 4
    assert [kind["kind"] for kind in facts["attention"]] == ["encoder", "decoder", "cross"]
    assert not facts["expressible_in_stock_transformers"]


def test_the_table_shows_every_number_of_the_json(llama: Path, gqkva: Run) -> None:
    """Both are read by people who compare them."""
    data = json.loads(gqkva("inspect", llama, "--json").stdout)
    shown = gqkva("inspect", llama).stdout
    assert f"{data['kv_cache_bytes_per_token']:,} bytes per token" in shown
    for option in data["options"]:
        assert f"{option['kv_cache_bytes_per_token']:,}" in shown
        assert option["variant"] in shown
    assert "rotary (half, 100%)" in shown


def test_a_converted_folder_says_what_it_is(llama: Path, gqkva: Run, tmp_path: Path) -> None:
    """The same command answers for results."""
    out = tmp_path / "out"
    gqkva("convert", llama, out, "--gkv", "2")
    assert "converted by gqkva: gqa-2" in gqkva("inspect", out).stdout
    assert "not verified yet" in gqkva("inspect", out).stdout
    gqkva("verify", out)
    assert inspect(out)["converted"]["verified"]


def test_pickled_checkpoints_are_inspected_too(llama: Path, tmp_path: Path) -> None:
    """Old Hub models have no safetensors headers."""
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((llama / "config.json").read_text())
    torch.save(tiny_models.load(llama, "LlamaForCausalLM").state_dict(), pickled / "pytorch_model.bin")
    expected = inspect(llama)
    assert {**inspect(pickled), "model": None} == {**expected, "model": None}
