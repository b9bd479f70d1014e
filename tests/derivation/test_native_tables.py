"""Families with generated tables, converted and loaded by stock transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from typer.testing import CliRunner

from gqkva_convert.architectures import FAMILIES, NATIVE, REFUSED
from gqkva_convert.cli import app
from gqkva_convert.derivation.render import family
from gqkva_convert.derivation.stock import build, inputs, stock_config
from gqkva_convert.derivation.table import derive, small_config

# One of each signature by default; all of them among the slow tests.
QUICK = ("mixtral", "cohere", "glm", "olmo3", "gemma3_text", "qwen3_moe")


# An older transformers has fewer types; that is refused in one line.
KNOWN = [name for name in sorted(NATIVE) if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in KNOWN]


def saved(name: str, folder: Path, **changes: Any) -> Any:
    """A small stock model whose four key/value heads are two pairs of equal ones, saved in float32."""
    config = stock_config(name, small_config(stock_config(name, {"num_hidden_layers": 2, **changes})))
    model = build(config, NATIVE[name].architecture).float()
    with torch.no_grad():
        for module in model.modules():
            for part in ("k_proj", "v_proj"):
                if hasattr(module, part) and hasattr(module, "o_proj"):
                    projection = getattr(module, part)
                    projection = getattr(projection, "linear", projection)
                    for values in (projection.weight, projection.bias):
                        if values is not None:
                            heads = values.unflatten(0, (4, -1))
                            heads[1], heads[3] = heads[0].clone(), heads[2].clone()
            norm = getattr(module, "k_norm", None)
            if norm is not None and len(norm.weight) != module.head_dim:
                gains = norm.weight.unflatten(0, (4, -1))
                gains[1], gains[3] = gains[0].clone(), gains[2].clone()
    model.save_pretrained(folder)
    return model


def test_embeddings_are_tied_where_the_configuration_class_ties_them() -> None:
    """A configuration that does not say leaves it to its class; a head of its own would be lost."""
    defaults = {name: stock_config(name, {}) for name in KNOWN}
    found = {name: NATIVE[name].ties_by_default for name in KNOWN}
    assert found == {name: getattr(each, "tie_word_embeddings", False) for name, each in defaults.items()}


@torch.inference_mode()
def difference(one: Any, other: Any) -> float:
    tokens = inputs(one, far=False)
    logits = one(**tokens).logits, other(**tokens).logits
    return float((logits[0] - logits[1]).abs().max() / logits[0].abs().max())


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("name", EVERY)
def test_merging_equal_heads_changes_no_logit(name: str, tmp_path: Path) -> None:
    """The tied-heads control through the stock class: after save and load, in a forward and in generation."""
    model = saved(name, tmp_path / "source")
    prompt = inputs(model, far=False)["input_ids"]
    generated = model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=True, pad_token_id=0)
    for merge in ("closed-form", "mean"):
        out = tmp_path / merge
        run("convert", tmp_path / "source", out, "--gkv", 2, "--merge", merge)
        loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
        loaded.eval()
        assert loaded.config.num_key_value_heads == 2
        assert difference(model, loaded) < 1e-4
        again = loaded.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=True, pad_token_id=0)
        assert torch.equal(generated, again)
    report = json.loads((tmp_path / "mean" / "gqkva_report.json").read_text())
    assert report["family_proof"]["licences"]["merge"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_a_table_is_what_transformers_shows_again(name: str) -> None:
    """`make families` would write the same."""
    assert family(derive(name)) == NATIVE[name]


def test_generated_and_other_types_are_apart() -> None:
    assert not NATIVE.keys() & (FAMILIES.keys() | REFUSED.keys())
    assert not FAMILIES.keys() & REFUSED.keys()
