"""What is exported is a stock model that computes what the grouped one does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from choices import pairs
from grouped_pairs import VARIANTS, write_pair
from typer.testing import Result

from gqkva_convert import export, verify
from gqkva_convert.architectures import FAMILIES
from gqkva_convert.errors import NotExpressibleError
from gqkva_convert.modeling.loading import load_model

Tiny = Callable[[str], Path]
Run = Callable[..., Result]

# Heads are hidden_size / num_attention_heads wide there, so that no head can be added.
FIXED_WIDTH = {"stablelm", "phi"}
# Variants of the default run.
QUICK = ("unequal", "GQA", "GQKVA", "mixed")


@pytest.mark.parametrize(
    ("family", "variant"),
    pairs(FAMILIES, always=QUICK[:1], dealt=QUICK[1:], slow=[name for name in VARIANTS if name not in QUICK]),
)
def test_an_exported_model_is_stock_and_computes_the_same(
    family: str, variant: str, tiny: Tiny, tmp_path: Path
) -> None:
    """Tiled queries, filled groups and copied keys must not change a logit.

    The default run: every family with groups of unequal sizes and with another of four variants, each of
    them in each kind of code path. The slow run: every family with every variant.
    """
    grouped, _ = write_pair(tiny(family), variant, tmp_path)
    is_uneven = variant in ("unequal", "mixed", "apart") and FAMILIES[family].is_native
    if family in FIXED_WIDTH | {"olmo2"} and is_uneven:
        with pytest.raises(NotExpressibleError, match=r"hidden_size|one norm over all heads"):
            export(grouped, tmp_path / "out")
        return
    out = export(grouped, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert not config["model_type"].startswith("gqkva")
    assert "attention_layouts" not in config
    assert not list(out.glob("*.py"))
    stock = load_model(out, FAMILIES[family].architecture)
    assert type(stock).__module__.startswith("transformers.")
    expected = tiny_models.outputs(load_model(grouped, FAMILIES[family].architecture))
    torch.testing.assert_close(
        tiny_models.outputs(stock), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


@pytest.mark.parametrize(("variant", "groups"), [("unequal", 3), ("GQKVA", 3), ("MKVA", 6), ("MQA", 1)])
def test_the_cache_keeps_its_heads(variant: str, groups: int, tiny: Tiny, tmp_path: Path) -> None:
    """Padding adds query heads; a longer cache would undo what the conversion was for."""
    grouped, _ = write_pair(tiny("llama"), variant, tmp_path)
    config = json.loads((export(grouped, tmp_path / "out") / "config.json").read_text())
    assert config["num_key_value_heads"] == groups
    assert config["head_dim"] == 4


def test_llama_heads_that_do_not_divide_the_width_become_mistral(tiny: Tiny, tmp_path: Path) -> None:
    """Stock Llama refuses 9 heads at a width of 30; Mistral computes the same and does not."""
    grouped, _ = write_pair(tiny("llama"), "unequal", tmp_path)
    config = json.loads((export(grouped, tmp_path / "out") / "config.json").read_text())
    assert config["num_attention_heads"] == 9
    assert (config["model_type"], config["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert config["sliding_window"] is None


def test_llama_with_biases_takes_a_count_that_divides(tmp_path: Path) -> None:
    """Mistral has no biases, so that more heads are added until stock Llama accepts them."""
    model = tiny_models.build("llama", "LlamaForCausalLM", attention_bias=True)
    source = tiny_models.save(model, tmp_path / "biased")
    grouped, _ = write_pair(source, "unequal", tmp_path)
    out = export(grouped, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["num_attention_heads"]) == ("llama", 15)
    expected = tiny_models.outputs(load_model(grouped, "LlamaForCausalLM"))
    torch.testing.assert_close(
        tiny_models.outputs(load_model(out, "")), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )


def test_a_llama_that_mistral_cannot_name_stays_one(tmp_path: Path) -> None:
    """Question answering stores its base model under another name in each; a swap would load nothing."""
    model = tiny_models.build("llama", "LlamaForQuestionAnswering")
    grouped, _ = write_pair(tiny_models.save(model, tmp_path / "source"), "unequal", tmp_path)
    out = export(grouped, tmp_path / "out")
    assert type(load_model(out, "")).__name__ == "LlamaForQuestionAnswering"
    assert verify(out, grouped)["passed"]


@pytest.mark.parametrize("variant", ["unequal", "GQKVA", "mixed"])
def test_an_export_is_verified_like_a_conversion(variant: str, tiny: Tiny, tmp_path: Path) -> None:
    """The proof goes back from the stock model to the grouped one."""
    grouped, _ = write_pair(tiny("llama"), variant, tmp_path)
    out = export(grouped, tmp_path / "out")
    result = verify(out, grouped)
    assert result["passed"], [check for check in result["checks"] if not check["passed"]]


def test_the_command_says_what_it_cost(tiny: Tiny, tmp_path: Path, gqkva: Run) -> None:
    """Copies of keys cost cache; a user must see it before serving."""
    grouped, _ = write_pair(tiny("gpt2"), "MQA", tmp_path)
    result = gqkva("export", grouped, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "stock gpt2, MHA" in result.stdout
    assert "KV cache 80 B -> 480 B a token" in result.stdout
    again = gqkva("export", grouped, tmp_path / "out")
    assert again.exit_code == 7
    data = json.loads(gqkva("export", grouped, tmp_path / "out", "--overwrite", "--json").stdout)
    assert data["kv_cache_bytes_per_token"] == [80, 480]


def test_a_refusal_leaves_nothing(tiny: Tiny, tmp_path: Path, gqkva: Run) -> None:
    """Exit code 5 says that no stock form exists."""
    grouped, _ = write_pair(tiny("stablelm"), "unequal", tmp_path)
    result = gqkva("export", grouped, tmp_path / "out")
    assert result.exit_code == 5
    assert "keep the folder as it is" in result.stderr
    assert not (tmp_path / "out").exists()
