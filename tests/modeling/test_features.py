"""What transformers and its neighbours do with a model works with a grouped one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from grouped_pairs import load_pair, write_pair

from gqkva_convert.architectures import FAMILIES
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
def test_continuous_batching(pair: tuple[Any, Any]) -> None:
    """Servers keep one cache for many requests; it holds as many heads as the configuration says."""
    grouped, stock = pair
    prompts = [[8, 28, 11, 14, 31, 7, 5], [9, 9, 3]]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    settings = transformers.GenerationConfig(**options, num_blocks=16, max_batch_tokens=64)
    answers = grouped.generate_batch(prompts, generation_config=settings, progress_bar=False)
    assert [answer.error for answer in answers.values()] == [None, None]
    for prompt, answer in zip(prompts, answers.values(), strict=True):
        expected = stock.generate(torch.tensor([prompt]), **options)[0, len(prompt) :]
        assert answer.generated_tokens == expected.tolist()
    assert grouped.config.num_key_value_heads == 3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_continuous_batching_is_refused_before_it_starts(family: str, tmp_path: Path) -> None:
    """Where layers keep different numbers of heads; its thread would give back empty answers."""
    layers = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
    model = tiny_models.build(family, FAMILIES[family].architecture, **{layers: 3})
    grouped, _ = load_pair(tiny_models.save(model, tmp_path / "source"), "mixed", tmp_path)
    with pytest.raises(NotImplementedError, match="use generate, or gqkva export"):
        grouped.generate_batch([[3, 4, 5]], max_new_tokens=2)


def test_what_is_set_on_a_block_is_set_on_the_model(pair: tuple[Any, Any]) -> None:
    """Patches of others set a block's configuration; what only that block saw would be lost."""
    grouped = pair[0]
    block = grouped.model.layers[0].self_attn
    expected = tiny_models.outputs(grouped)
    block.config.attention_dropout = 0.25
    assert grouped.config.attention_dropout == 0.25
    block.config._attn_implementation = "eager"
    assert grouped.config._attn_implementation == "eager"
    assert copy.deepcopy(block).config.stock._attn_implementation == "eager"
    same(tiny_models.outputs(grouped), expected)


def test_a_block_keeps_values_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    """Phi-3's blocks read a number of query heads that the model's configuration does not have."""
    grouped, _ = load_pair(tiny("phi3"), "GQKVA", tmp_path)
    block = grouped.model.layers[0].self_attn
    assert (block.config.num_attention_heads, grouped.config.num_attention_heads) == (2, 6)
    block.config.num_attention_heads = 3
    assert (block.config.num_attention_heads, grouped.config.num_attention_heads) == (3, 6)


@pytest.mark.slow
def test_flex_attention(pair: tuple[Any, Any]) -> None:
    """Compiled kernels with block masks; on a CPU they take a while to build."""
    with torch.inference_mode():
        expected = pair[1](**tiny_models.inputs(pair[1]), use_cache=False).logits
        pair[0].set_attn_implementation("flex_attention")
        found = pair[0](**tiny_models.inputs(pair[0]), use_cache=False).logits
    same(found, expected, 1e-3)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["unequal", "GQKVA", "random GQA"])
def cuda_pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """As `pair`, with heads of a width that flash attention takes, in bfloat16 on a GPU."""
    model = tiny_models.build("llama", "LlamaForCausalLM", head_dim=64, max_position_embeddings=8192)
    source = tiny_models.save(model, tmp_path / "source")
    grouped, stock = load_pair(source, request.param, tmp_path)
    return grouped.to("cuda", torch.bfloat16), stock.to("cuda", torch.bfloat16)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("implementation", ["sdpa", "flash_attention_2", "flex_attention"])
def test_cuda_kernels(implementation: str, cuda_pair: tuple[Any, Any]) -> None:
    """Prefill and decoding on a GPU, in the dtype that flash attention takes."""
    if implementation == "flash_attention_2":
        pytest.importorskip("flash_attn")
    grouped, stock = cuda_pair
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


@pytest.mark.gpu
@needs_cuda
def test_cuda_compiled_decoding(cuda_pair: tuple[Any, Any]) -> None:
    """A static cache and one graph for each step, as `generate` compiles it on a GPU."""
    torch.compiler.reset()
    grouped, _ = (model.float() for model in cuda_pair)
    tokens = tiny_models.inputs(grouped)["input_ids"].cuda()
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = grouped.generate(tokens, **options).tolist()
    assert grouped.generate(tokens, cache_implementation="static", **options).tolist() == expected
    compiled = torch.compile(grouped, fullgraph=True)
    with torch.inference_mode():
        same(compiled(tokens, use_cache=False).logits, grouped(tokens, use_cache=False).logits, 1e-3)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("masked", [False, True])
def test_cuda_decoding_expands_no_keys(masked: bool, cuda_pair: tuple[Any, Any]) -> None:
    """The peak memory of a step is less than one layer's keys repeated for its heads would take."""
    grouped, _ = cuda_pair
    batch, length = 8, 8000
    tokens = torch.zeros(batch, length, dtype=torch.long, device="cuda")
    mask = torch.ones(batch, length + 2, dtype=torch.long, device="cuda")
    mask[0, :7] = 0 if masked else 1
    with torch.inference_mode():
        cache = transformers.StaticCache(config=grouped.config, max_cache_len=length + 2)
        grouped(tokens, attention_mask=mask[:, :length], past_key_values=cache, logits_to_keep=1)
        for step in range(2):  # the first one warms up
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            grouped(tokens[:, :1], attention_mask=mask[:, : length + 1 + step], past_key_values=cache)
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
    expanded = batch * tiny_models.HEADS * (length + 2) * 64 * torch.bfloat16.itemsize
    assert peak < expanded
