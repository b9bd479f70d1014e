"""What transformers and its neighbours do with a model works with a grouped one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from grouped_pairs import load_pair, write_pair

from gqkva_convert.modeling.loading import load_model

Tiny = Callable[[str], Path]


@pytest.fixture(params=["unequal", "GQKVA"])
def pair(request: pytest.FixtureRequest, tiny: Tiny, tmp_path: Path) -> tuple[Any, Any]:
    """A grouped Llama and the stock model that computes the same."""
    return load_pair(tiny("llama"), request.param, tmp_path)


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_packed_sequences_do_not_see_each_other(pair: tuple[Any, Any]) -> None:
    """Position ids that start again make transformers mask across documents."""
    tokens = tiny_models.inputs(pair[0], 9)["input_ids"][:1]
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with torch.inference_mode():
        found, expected = (model(tokens, position_ids=positions, use_cache=False).logits for model in pair)
        alone = pair[0](tokens[:, 4:], use_cache=False).logits
    same(found, expected)
    same(found[:, 4:], alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision(pair: tuple[Any, Any], dtype: torch.dtype) -> None:
    """Serving and training run in 16 bits."""
    inputs = tiny_models.inputs(pair[0])
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
        found, expected = (model(**inputs).logits.float() for model in pair)
    same(found, expected, 0.05)
    with torch.inference_mode():
        found, expected = (copy.deepcopy(model).to(dtype)(**inputs).logits.float() for model in pair)
    same(found, expected, 0.05)


def test_assisted_generation(pair: tuple[Any, Any]) -> None:
    """Several drafted positions are checked at once, and a rejected one is cut from the cache."""
    grouped, stock = pair
    tokens = tiny_models.inputs(stock)["input_ids"][:1]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = stock.generate(tokens, **options)
    assert grouped.generate(tokens, assistant_model=stock, **options).tolist() == plain.tolist()
    assert stock.generate(tokens, assistant_model=grouped, **options).tolist() == plain.tolist()


@pytest.mark.parametrize("variant", ["unequal", "GQKVA"])
def test_sliding_windows(variant: str, tmp_path: Path) -> None:
    """Mistral keeps a window of keys; the stored heads of a grouped model are kept the same way."""
    model = tiny_models.build("mistral", "MistralForCausalLM", sliding_window=4)
    grouped, stock = load_pair(tiny_models.save(model, tmp_path / "mistral"), variant, tmp_path)
    tokens = tiny_models.inputs(stock)["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for more in ({}, {"cache_implementation": "static", "disable_compile": True}):
        found, expected = (model.generate(tokens, **options, **more).tolist() for model in (grouped, stock))
        assert found == expected


def test_attention_weights_have_a_map_for_each_attention_head(pair: tuple[Any, Any]) -> None:
    """People look at heads; merged ones must still show up one by one."""
    for model in pair:
        model.set_attn_implementation("eager")
    with torch.inference_mode():
        found, expected = (
            model(**tiny_models.inputs(model), output_attentions=True).attentions for model in pair
        )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape[1] == tiny_models.HEADS
        same(ours, theirs)


def test_export_graphs(pair: tuple[Any, Any]) -> None:
    """`torch.export` feeds ONNX, ExecuTorch and AOTInductor."""
    tokens = tiny_models.inputs(pair[0])["input_ids"]

    class Logits(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
            return logits

    program = torch.export.export(Logits(pair[0]), (tokens,), strict=False)
    with torch.inference_mode():
        same(program.module()(tokens), pair[1](tokens).logits)


def test_new_tokens(pair: tuple[Any, Any]) -> None:
    """Fine-tuning often begins with a larger vocabulary."""
    tokens = tiny_models.inputs(pair[0])["input_ids"]
    for model in pair:
        model.resize_token_embeddings(41, mean_resizing=False)
    assert pair[0].get_input_embeddings().weight.shape[0] == 41
    with torch.inference_mode():
        found, expected = (model(tokens).logits[..., :37] for model in pair)
    same(found, expected)


def test_offload(tiny: Tiny, tmp_path: Path) -> None:
    """Layers on disk are fetched as they are needed."""
    folder, _ = write_pair(tiny("llama"), "GQKVA", tmp_path)
    from gqkva_convert.modeling.classes import GqkvaLlamaForCausalLM

    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = GqkvaLlamaForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=tmp_path / "offload"
    ).eval()
    same(tiny_models.outputs(model), tiny_models.outputs(load_model(folder, "")))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_lora_on_resized_projections(family: str, tiny: Tiny, tmp_path: Path) -> None:
    """Adapters train on the smaller projections and merge into them."""
    peft = pytest.importorskip("peft")
    grouped, _ = load_pair(tiny(family), "GQKVA", tmp_path)
    targets = {"llama": ["q_proj", "k_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query", "key", "value"]}
    config = peft.LoraConfig(
        target_modules=targets[family], init_lora_weights=False, r=2, fan_in_fan_out=family == "gpt2"
    )
    model = peft.get_peft_model(grouped, config).eval()
    expected = tiny_models.outputs(model.base_model.model)
    merged = model.merge_and_unload()
    same(tiny_models.outputs(merged), expected)


def test_copies_and_pickles(pair: tuple[Any, Any], tmp_path: Path) -> None:
    """EMA, model averaging and `torch.save` of whole models."""
    expected = tiny_models.outputs(pair[0])
    torch.save(pair[0], tmp_path / "model.pt")
    for model in (copy.deepcopy(pair[0]), torch.load(tmp_path / "model.pt", weights_only=False)):
        model.set_attn_implementation("eager")
        same(tiny_models.outputs(model), expected)
    assert pair[0].config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_flex_attention(pair: tuple[Any, Any]) -> None:
    """Compiled kernels with block masks; on a CPU they take a while to build."""
    with torch.inference_mode():
        expected = pair[1](**tiny_models.inputs(pair[1]), use_cache=False).logits
        pair[0].set_attn_implementation("flex_attention")
        found = pair[0](**tiny_models.inputs(pair[0]), use_cache=False).logits
    same(found, expected, 1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("implementation", ["sdpa", "flash_attention_2", "flex_attention"])
def test_cuda_kernels(implementation: str, pair: tuple[Any, Any]) -> None:
    """Prefill and decoding on a GPU, in the dtype that flash attention takes."""
    if implementation == "flash_attention_2":
        pytest.importorskip("flash_attn")
    grouped, stock = (model.to("cuda", torch.bfloat16) for model in pair)
    grouped.set_attn_implementation(implementation)
    tokens = tiny_models.inputs(stock)["input_ids"].cuda()
    with torch.inference_mode():
        cached = [model(tokens[:, :-1], use_cache=True) for model in (grouped, stock)]
        last = [
            model(tokens[:, -1:], past_key_values=output.past_key_values).logits
            for model, output in zip((grouped, stock), cached, strict=True)
        ]
    same(cached[0].logits, cached[1].logits, 0.05)
    same(last[0], last[1], 0.05)
