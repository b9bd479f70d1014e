"""Quantised weights and caches of grouped models are those of the stock model with the heads copied out.

``pip install -c constraints.txt -e '.[test,quantised]' && pytest -m slow tests/modeling/test_quantised.py``
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from grouped_pairs import layout, load_pair, write_pair

import gqkva_convert  # noqa: F401 - the Auto classes know grouped models from then on
from gqkva_convert.architectures import FAMILIES

# The packages warn of kernels that this machine lacks, and of each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# Widths that the quantisers' blocks of 64 divide.
WIDE: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 192, "intermediate_size": 128, "head_dim": 64},
    "gpt_neox": {"hidden_size": 192, "intermediate_size": 128},
    "gpt2": {"n_embd": 192},
    "opt": {"hidden_size": 192, "ffn_dim": 128, "word_embed_proj_dim": 192},
    "bert": {"hidden_size": 192, "intermediate_size": 128},
}


def wide(family: str, folder: Path) -> Path:
    model = tiny_models.build(family, FAMILIES[family].architecture, **WIDE[family])
    return tiny_models.save(model, folder / "source")


@pytest.mark.parametrize("variant", ["MQA", "unequal", "MKVA", "GQKVA", "apart"])
@pytest.mark.parametrize(("backend", "package", "axis"), [("quanto", "optimum.quanto", 0), ("hqq", "hqq", 1)])
def test_quantised_caches(variant: str, backend: str, package: str, axis: int, tmp_path: Path) -> None:
    """Stored heads alone are quantised, once the newest positions outgrow what is kept as it is."""
    pytest.importorskip(package)
    grouped, stock = load_pair(wide("llama", tmp_path), variant, tmp_path)
    settings = {"backend": backend, "nbits": 4, "residual_length": 4, "q_group_size": 32}
    found, expected, exact = (
        model.generate(
            tiny_models.inputs(stock)["input_ids"],
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            output_scores=True,
            return_dict_in_generate=True,
            **cache,
        )
        for model, cache in (
            *(
                (
                    model,
                    {
                        "cache_implementation": "quantized",
                        "cache_config": settings | {"axis_key": axis, "axis_value": axis},
                    },
                )
                for model in (grouped, stock)
            ),
            (grouped, {}),
        )
    )
    assert found.sequences.tolist() == expected.sequences.tolist()
    ours, theirs, unquantised = (torch.stack(output.scores) for output in (found, expected, exact))
    largest = theirs.abs().max()
    # A sum in another order may fall to the neighbouring code.
    assert (ours - theirs).abs().max() < 0.03 * largest
    assert (ours[1:] - unquantised[1:]).abs().max() > 1e-3 * largest  # codes were read
    layer = found.past_key_values.layers[0]
    assert layer.keys.shape[1] == layout(variant, tiny_models.HEADS, 64).num_key_heads
    assert layer._quantized_keys is not None


def _torchao() -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    return transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())


def _quanto() -> Any:
    pytest.importorskip("optimum.quanto")
    return transformers.QuantoConfig(weights="int8")


def _bits(**options: Any) -> Any:
    pytest.importorskip("bitsandbytes")
    return transformers.BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **options)


QUANTISERS: dict[str, Callable[[], Any]] = {
    "torchao int8": _torchao,
    "bitsandbytes 8 bits": lambda: _bits(load_in_8bit=True),
    "bitsandbytes 4 bits": lambda: _bits(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "quanto int8": _quanto,
}


@pytest.mark.parametrize(
    ("quantiser", "family"),
    [
        (quantiser, family)
        for quantiser in QUANTISERS
        for family in WIDE
        # torchao and quanto leave GPT-2's Conv1D layers as they are
        if family != "gpt2" or "bits" in quantiser
    ],
)
def test_quantised_weights(quantiser: str, family: str, tmp_path: Path) -> None:
    """Rows and columns are quantised by themselves, so that heads copied out get the same codes."""
    folders = write_pair(wide(family, tmp_path), "GQKVA", tmp_path)
    auto = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    full = tiny_models.outputs(auto.from_pretrained(folders[0], dtype=torch.float32))
    grouped, stock = (
        auto.from_pretrained(
            folder, quantization_config=QUANTISERS[quantiser](), dtype=torch.float32, device_map="cpu"
        )
        for folder in folders
    )
    if quantiser != "quanto int8":  # which transformers cannot save
        grouped.save_pretrained(tmp_path / "saved")  # before bitsandbytes packs 4 bits anew for a CPU
    found, expected = tiny_models.outputs(grouped), tiny_models.outputs(stock)
    largest = full.abs().max()
    assert (found - expected).abs().max() < 1e-3 * largest
    assert 1e-4 * largest < (found - full).abs().max() < largest
    if quantiser != "quanto int8":
        again = auto.from_pretrained(tmp_path / "saved", device_map="cpu")
        torch.testing.assert_close(tiny_models.outputs(again), found, rtol=0, atol=0)
