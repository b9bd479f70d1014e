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


@pytest.mark.parametrize("family", ["vit", "llama", "t5"])
def test_without_numbers_of_heads_all_are_stored(family: str, tmp_path: Path) -> None:
    """The original that variants are compared with is made in the same way, and is a stock checkpoint."""
    config = {"t5": {"d_model": 48, "d_kv": 8, "num_heads": 6, "num_layers": 1, "vocab_size": 50}}
    (tmp_path / "config.json").write_text(json.dumps(config.get(family, TINY)))
    result = init(family, tmp_path / "out", config=tmp_path / "config.json")
    assert result["variant"] == "MHA"
    assert not result["class"].startswith("Gqkva")


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    """Sizes of large models are known without their memory."""
    (tmp_path / "c.json").write_text(
        json.dumps({"num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64})
    )
    counted = init("vit", tmp_path / "out", gkv=2, config=tmp_path / "c.json", dry_run=True)
    assert counted["parameters"] > 10_000_000_000
    (tmp_path / "t.json").write_text(json.dumps(TINY))
    real = init("vit", tmp_path / "real", gkv=2, config=tmp_path / "t.json")
    assert init("vit", tmp_path / "x", gkv=2, config=tmp_path / "t.json", dry_run=True) == {
        **real,
        "folder": str(tmp_path / "x"),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "real", "t.json"]


def test_pictures_are_scaled_to_the_model(tmp_path: Path) -> None:
    """A fresh model of images can be trained as it is: its processor makes what it reads."""
    import numpy as np
    from PIL import Image

    from gqkva_convert.data.processors import load_processor

    config = {**TINY, "image_size": 16, "patch_size": 4, "num_channels": 3}
    (tmp_path / "c.json").write_text(json.dumps(config))
    init("vit", tmp_path / "out", gkv=2, config=tmp_path / "c.json")
    processor = load_processor(tmp_path / "out", "AutoImageProcessor")
    picture = Image.fromarray(np.full((40, 30, 3), 255, dtype=np.uint8))
    pixels = processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    assert torch.allclose(pixels, torch.ones_like(pixels))
    assert load_model(tmp_path / "out", "")(pixel_values=pixels).logits.shape == (1, 2)


def test_a_tokenizer_is_taken_with_its_vocabulary(tmp_path: Path) -> None:
    """The built-in model's, as an example of any model's; a configuration's own words stand."""
    import transformers

    (tmp_path / "c.json").write_text(json.dumps({**TINY, "max_position_embeddings": 64}))
    init("llama", tmp_path / "out", config=tmp_path / "c.json", tokenizer="built-in")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], tokenizer.model_max_length) == (len(tokenizer), 64)
    assert config["eos_token_id"] == tokenizer.eos_token_id
    (tmp_path / "c.json").write_text(json.dumps({**TINY, "vocab_size": 5000}))
    init("llama", tmp_path / "wider", config=tmp_path / "c.json", tokenizer="built-in")
    assert json.loads((tmp_path / "wider" / "config.json").read_text())["vocab_size"] == 5000


@pytest.mark.parametrize("family", ["t5", "llama", "bert"])
def test_a_tokenizer_is_trained_on_data(family: str, tmp_path: Path, gqkva: Run) -> None:
    """Every text comes back, and the special tokens stand where the family wants them."""
    import transformers

    config = {"t5": {"d_model": 48, "d_kv": 8, "num_heads": 6, "num_layers": 1}}.get(family, TINY)
    (tmp_path / "c.json").write_text(json.dumps({**config, "vocab_size": 300}))
    (tmp_path / "texts.txt").write_text("the cat sat on the mat\nthe dog sat on the cat\n" * 20)
    arguments = ["--config", tmp_path / "c.json", "--tokenizer-data", tmp_path / "texts.txt"]
    for name in ("out", "again"):
        result = gqkva("init", family, tmp_path / name, *arguments)
        assert result.exit_code == 0, result.stderr
    files = [tmp_path / name / "tokenizer.json" for name in ("out", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "a naïve cat, 猫\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert (ids[0] == begin, ids[-1] == end) == {
        "t5": (False, True),
        "llama": (False, False),
        "bert": (True, True),
    }[family]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert len(tokenizer) <= written["vocab_size"] == 300
    assert written["pad_token_id"] == tokenizer.pad_token_id
    if family == "t5":
        assert written["decoder_start_token_id"] == tokenizer.pad_token_id


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
    if family == "t5":
        words = torch.arange(6)[None]
        model = load_model(out, "")
        assert model(input_ids=words, labels=words).loss.item() > 0
        assert model.generate(input_ids=words, max_new_tokens=2).shape[1] > 1


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
        (["vit", "out", "--tokenizer", "built-in"], TINY, 4, "vit reads no text; leave the tokenizer out"),
        (
            ["llama", "out", "--tokenizer", "built-in", "--tokenizer-data", "x.txt"],
            TINY,
            4,
            "a model has one tokenizer",
        ),
        (["llama", "out", "--tokenizer-data", "x.txt"], TINY, 11, "x.txt does not exist"),
        (
            ["llama", "out", "--tokenizer-data", "x.txt"],
            {**TINY, "vocab_size": 100},
            11,
            "260 entries alone are bytes and special tokens",
        ),
        (
            ["llama", "out", "--tokenizer", "built-in"],
            {**TINY, "vocab_size": 100},
            4,
            "the tokenizer has 4096 words, the configuration a vocab_size of 100",
        ),
        (["llama", "out", "--tokenizer-data", "x"], {**TINY, "vocab_size": "many"}, 4, "whole number"),
        (["t5", "out", "--tokenizer", "built-in"], {}, 4, "the tokenizer has no pad token"),
        (["vit", "out"], {**TINY, "image_size": [32, 32, 32]}, 4, "image_size"),
        (["vit", "out"], {"hidden_sise": 12}, 4, "no key 'hidden_sise'; did you mean 'hidden_size'?"),
        (["llama", "out", "--tokenizer", "./nowhere"], TINY, 3, "is not a folder"),
        (["llama", "out", "--blocks", "self"], TINY, 2, "--blocks says what to group"),
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
