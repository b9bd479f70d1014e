"""Models with a text model inside: it is converted, towers are copied, images are answered alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from typer.testing import Result

from gqkva_convert.architectures import NESTED
from gqkva_convert.derivation.stock import build, inputs, stock_config
from gqkva_convert.derivation.table import small_config

Command = Callable[..., Result]
QUICK = ("llava", "qwen2_vl")
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(NESTED)]
_TOWERS = ("vis", "audio", "image", "video", "perceiver", "sam", "connector", "projector", "qformer")


def small(name: str) -> Any:
    """A small stock model whose text model has two pairs of equal key/value heads, in float32."""
    config = stock_config(name, {})
    if "qwen" in name or "glm" in name or "vl" in name:
        config.text_config.rope_parameters.setdefault("mrope_section", [16, 24, 24])
    if "thinker" in name:
        config.vision_start_token_id = 5  # which generation reads, and the default configuration lacks
    outer = NESTED[name]
    model = build(stock_config(name, small_config(config)), f"{outer.stem}{outer.usual}").float()
    with torch.no_grad():
        for path, module in model.named_modules():
            if not hasattr(module, "o_proj") or any(word in path for word in _TOWERS):
                continue
            for part in (module.k_proj, module.v_proj):
                for values in (part.weight, part.bias):
                    if values is not None:
                        heads = values.unflatten(0, (4, -1))
                        heads[1], heads[3] = heads[0].clone(), heads[2].clone()
    return model


def merged(model: Any, folder: Path, gqkva: Command, merge: str = "closed-form") -> Any:
    """The model converted to two key/value heads, loaded by its stock class."""
    result = gqkva("convert", folder / "source", folder / merge, "--gkv", 2, "--merge", merge)
    assert result.exit_code == 0, result.output
    loaded = type(model).from_pretrained(folder / merge, dtype=torch.float32, attn_implementation="eager")
    assert loaded.config.text_config.num_key_value_heads == 2
    return loaded.eval()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


@pytest.mark.parametrize("name", EVERY)
@torch.inference_mode()
def test_merging_equal_heads_changes_no_logit(name: str, tmp_path: Path, gqkva: Command) -> None:
    """The tied-heads control through the stock class, in a forward and in generation with a cache."""
    model = small(name)
    prompt = inputs(model, far=False)
    model.save_pretrained(tmp_path / "source")
    for merge in ("closed-form", "mean"):
        loaded = merged(model, tmp_path, gqkva, merge)
        assert difference(model(**prompt).logits, loaded(**prompt).logits) < 1e-4
        options: dict[str, Any] = {
            "max_new_tokens": 4,
            "do_sample": False,
            "use_cache": True,
            "pad_token_id": 0,
        }
        tokens = [each.generate(prompt["input_ids"], **options) for each in (model, loaded)]
        assert torch.equal(*tokens)
    before = safetensors.torch.load_file(tmp_path / "source" / "model.safetensors")
    after = safetensors.torch.load_file(tmp_path / "mean" / "model.safetensors")
    changed = {key for key in before if before[key].shape != after[key].shape}
    assert {key.rpartition(".")[0].rpartition(".")[2] for key in changed} <= {"k_proj", "v_proj", "k_norm"}
    assert all(torch.equal(before[key], after[key]) for key in before.keys() - changed)


@torch.inference_mode()
def test_an_image_is_answered_alike(tmp_path: Path, gqkva: Command) -> None:
    model = small("llava")
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    words = inputs(model, far=False)["input_ids"]
    prompt = {
        "input_ids": torch.cat([torch.full((1, patches), model.config.image_token_id), words], 1),
        "pixel_values": torch.randn(
            1, 3, vision.image_size, vision.image_size, generator=torch.manual_seed(0)
        ),
    }
    model.save_pretrained(tmp_path / "source")
    loaded = merged(model, tmp_path, gqkva)
    answers = model(**prompt).logits, loaded(**prompt).logits
    assert difference(*answers) < 1e-4
    other = {**prompt, "pixel_values": -prompt["pixel_values"]}
    assert difference(answers[0], model(**other).logits) > 1e-3  # it looks at the image


def test_the_other_spelling_of_names_is_read(tmp_path: Path, gqkva: Command) -> None:
    """Checkpoints store the text model as its class did when they were written, or as it does now."""
    model = small("llava")
    model.save_pretrained(tmp_path / "source")
    held = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(held, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    result = gqkva("convert", tmp_path / "source", tmp_path / "out", "--gkv", 2)
    assert result.exit_code == 0, result.output
    loaded = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", dtype=torch.float32)
    prompt = inputs(model, far=False)
    with torch.inference_mode():
        assert difference(model(**prompt).logits, loaded.eval()(**prompt).logits) < 1e-4
    assert gqkva("verify", tmp_path / "out", "--against", tmp_path / "source").exit_code == 0


def test_a_text_model_without_a_table_is_refused(tmp_path: Path, gqkva: Command) -> None:
    small("llava").save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["model_type"] = "gpt_oss"
    file.write_text(json.dumps(config))
    refused = gqkva("inspect", tmp_path / "source")
    assert refused.exit_code == 4
    assert "(llava): no family table for model_type 'gpt_oss'" in refused.output
