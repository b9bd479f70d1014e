"""What inspect says must be what transformers builds and conversions give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from grouped_pairs import write_pair
from typer.testing import Result

from gqkva_convert import convert, inspect
from gqkva_convert.architectures import FAMILIES, Family

Run = Callable[..., Result]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_parameters_are_counted_as_transformers_counts_them(
    family: Family, tiny: Callable[[str], Path]
) -> None:
    """Nobody would trust a KV-cache figure beside a wrong parameter count."""
    name = family.model_type
    facts = inspect(tiny(name))
    model = tiny_models.load(tiny(name), family.architecture)
    stored = {t.data_ptr(): t.numel() for t in model.state_dict().values() if t.is_floating_point()}
    assert facts["parameters"]["total"] == sum(stored.values())
    assert sum(count for part, count in facts["parameters"].items() if part != "total") == sum(
        stored.values()
    )
    attention = sum(
        p.numel()
        for n, p in model.named_parameters()
        if any(word in n for word in ("q_proj", "query", "c_attn", ".q.", "q_lin", "qkv"))
    )
    assert facts["parameters"]["attention"] > attention > 0


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
