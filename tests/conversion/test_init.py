"""Fresh models have the sizes the papers give and the families' own initialisation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from gqkva_convert import init
from gqkva_convert.modeling.loading import load_model

Run = Callable[..., Result]

SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 1000}
TINY = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2, "intermediate_size": 60}


@pytest.mark.parametrize(
    ("gq", "gkv", "millions"),
    [
        (6, None, 22.05),
        (3, None, 21.16),
        (2, None, 20.87),
        (1, None, 20.57),
        (None, 3, 20.28),
        (None, 2, 19.68),
        (None, 1, 19.09),
        (2, 3, 19.09),
        (3, 2, 18.80),
    ],
)
def test_vit_small_has_the_sizes_of_the_gqkva_paper(
    gq: int | None, gkv: int | None, millions: float, tmp_path: Path
) -> None:
    """Javadi et al., 2023, arXiv 2311.03426: ViT-S/16, 1000 classes, biases on q, k and v."""
    (tmp_path / "vit-small.json").write_text(json.dumps(SMALL))
    result = init("vit", tmp_path / "out", gq=gq, gkv=gkv, config=tmp_path / "vit-small.json")
    saved = 12 * (384 * 64 + 64) * (6 - (gq or 6) + 2 * (6 - (gkv or 6)))
    assert result["parameters"] == 22_050_664 - saved
    assert result["parameters"] / 1e6 == pytest.approx(millions, abs=0.0055)


@pytest.mark.parametrize("family", ["vit", "llama", "gpt2", "t5"])
def test_a_fresh_model_reopens_and_is_drawn_by_its_seed(family: str, tmp_path: Path) -> None:
    """Pre-training starts from this folder, and a run must be repeatable."""
    config = {
        "gpt2": {"n_embd": 48, "n_head": 6, "n_layer": 2, "vocab_size": 50},
        "t5": {"d_model": 48, "d_kv": 8, "num_heads": 6, "num_layers": 2, "d_ff": 60, "vocab_size": 50},
        "llama": {**TINY, "vocab_size": 50},
    }.get(family, TINY)
    (tmp_path / "config.json").write_text(json.dumps(config))
    states = []
    for seed in (0, 0, 1):
        out = tmp_path / f"out{len(states)}"
        init(family, out, gq=2, gkv=3, config=tmp_path / "config.json", seed=seed)
        states.append(load_model(out, "").state_dict())
    name = next(name for name in states[0] if name.endswith(("q_proj.weight", "c_attn.weight", ".q.weight")))
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])
    assert 0 < states[0][name].std() < 1


def test_a_native_variant_is_a_stock_model(tmp_path: Path) -> None:
    """Nobody needs our code for a Llama with fewer key/value heads."""
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "vocab_size": 50}))
    init("llama", tmp_path / "out", gkv=2, config=tmp_path / "config.json", dtype="bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["num_key_value_heads"]) == ("llama", 2)
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "config", "code", "words"),
    [
        (["vitt", "out", "--gkv", "2"], {}, 4, "known are"),
        (["vit", "out", "--gkv", "5"], TINY, 2, "choose one of"),
        (["vit", "out", "--gkv", "2"], {"model_type": "bert"}, 4, "of a bert"),
        (["vit", "out", "--gkv", "2", "--task", "ViTForDancing"], TINY, 4, "no class"),
        (["vit", "out", "--gkv", "2", "--task", "BertForMaskedLM"], TINY, 4, "no class"),
        (["vit", "out", "--gkv", "2"], {**TINY, "hidden_act": "nope"}, 4, "refused by transformers"),
        (["vit", "out", "--gkv", "2"], [1], 4, "a JSON object, found list"),
        (["vit", "out", "--gkv", "2", "--dtype", "float12"], TINY, 2, "no dtype"),
        (["vit", "out", "--gkv", "2"], {"hidden_size": "wide"}, 4, "refused by transformers"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    config: object,
    code: int,
    words: str,
    tmp_path: Path,
    gqkva: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each with its own exit code, and nothing left behind."""
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps(config))
    result = gqkva("init", *arguments, "--config", "config.json")
    assert (result.exit_code, len(result.stderr.strip().splitlines())) == (code, 1), result.stderr
    assert words in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]
