"""Closed-form conversions of whole models lose nothing where nothing need be lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import Result

from gqkva_convert import convert, verify
from gqkva_convert.architectures import FAMILIES
from gqkva_convert.demo_model.demo import MODEL, held_out_windows
from gqkva_convert.evaluation.perplexity import language_loss, load_causal_lm
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.source.model import open_model
from gqkva_convert.source.rotary import rotary_planes

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {"gq": 2, "gkv": 3},
        pytest.param({"gkv": 2, "grouping": "random", "seed": 3}, marks=pytest.mark.slow),
        pytest.param({"gkv": 2}, marks=pytest.mark.slow),
        pytest.param({"gkv": 1}, marks=pytest.mark.slow),
        pytest.param({"gq": 3}, marks=pytest.mark.slow),
        pytest.param({"gkv": 2, "merge": "aligned"}, marks=pytest.mark.slow),
        pytest.param({"gq": 3, "gkv": 2, "merge": "aligned-rescaled"}, marks=pytest.mark.slow),
    ],
)
def test_every_family_converts_and_proves_it(
    family: str, options: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    """Packings, biases, partial rotary positions and norms: heads that agree must come out agreeing."""
    if family in ("clip", "siglip") and "gq" in options:
        options = options | {"blocks": "text"}  # the vision tower has another number of heads
    out = convert(tiny(family), tmp_path / "out", **({"merge": "closed-form"} | options))
    result = verify(out, tiny(family))
    assert result["passed"], [check for check in result["checks"] if not check["passed"]]


# With their heads side by side in separate tensors, so that a test can turn them.
@pytest.mark.parametrize("family", ["llama", "gemma", "starcoder2", "bert", "opt", "t5", "vit"])
def test_heads_that_differ_by_an_invariance_merge_without_loss(
    family: str, tiny: Tiny, tmp_path: Path
) -> None:
    """The same head in another basis: averaging destroys it, the closed form sees through it."""
    source = tiny(family)
    equal = convert(source, tmp_path / "equal", gkv=2)
    expected = tiny_models.outputs(load_model(equal, ""))
    turned = _turned_copy(equal, source, tmp_path)
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        tiny_models.outputs(load_model(turned, FAMILIES[family].architecture)),
        expected,
        rtol=1e-3,
        atol=1e-3 * scale,
    )
    errors = {}
    for merge in ("closed-form", "mean"):
        out = convert(turned, tmp_path / merge, gkv=2, merge=merge)
        found = tiny_models.outputs(load_model(out, ""))
        errors[merge] = float((found - expected).abs().max()) / scale
    assert errors["closed-form"] < 1e-3
    assert errors["mean"] > 0.01


def _turned_copy(equal: Path, source: Path, folder: Path) -> Path:
    """The stock model of a grouped one, each of its heads in a random basis of its own."""
    from gqkva_convert.conversion.excerpt import reversed_plan, write_excerpt
    from gqkva_convert.plans.plan import Plan
    from gqkva_convert.records.report import read_report
    from gqkva_convert.steps.make import make_steps

    grouped, back = open_model(equal), reversed_plan(Plan.from_report(read_report(equal)))
    layers = range(1 + max(block.layer for block in grouped.blocks))
    write_excerpt(grouped, back, make_steps(grouped, back), layers, folder / "turned")
    model = open_model(folder / "turned")
    tensors = load_file(folder / "turned" / "model.safetensors")
    random = np.random.default_rng(0)
    for block in model.blocks:
        names = {p.roles[0]: block.tensor_name(p.name) for p in block.attention.projections}
        planes = rotary_planes(model, block)
        first, second = list(planes.first), list(planes.second)
        size = block.layout.head_dim
        for head in range(block.layout.num_attention_heads):
            span = slice(head * size, (head + 1) * size)
            mix = np.eye(size) + 0.5 * random.standard_normal((size, size))
            _multiply(tensors, names["value"], span, mix)
            output = tensors[f"{names['output']}.weight"]
            output[:, span] = output[:, span] @ np.linalg.inv(mix)
            turn = mix if not first else _plane_turn(size, first, second, random)
            _multiply(tensors, names["key"], span, turn)
            _multiply(tensors, names["query"], span, np.linalg.inv(turn).T)
    save_file(tensors, folder / "turned" / "model.safetensors", {"format": "pt"})
    return folder / "turned"


def _plane_turn(size: int, first: list[int], second: list[int], random: np.random.Generator) -> Any:
    """A complex factor for each rotary plane, and any mixing of the features that do not turn."""
    turn = np.zeros((size, size))
    for one, other in zip(first, second, strict=True):
        angle, length = random.uniform(0, 2 * np.pi), random.uniform(0.5, 2)
        cosine, sine = length * np.cos(angle), length * np.sin(angle)
        turn[one, one], turn[one, other], turn[other, one], turn[other, other] = cosine, -sine, sine, cosine
    still = sorted(set(range(size)) - {*first, *second})
    turn[np.ix_(still, still)] = np.eye(len(still)) + 0.3 * random.standard_normal((len(still), len(still)))
    return turn


def _multiply(tensors: dict[str, Any], name: str, span: slice, matrix: Any) -> None:
    for part in ("weight", "bias"):
        if f"{name}.{part}" in tensors:
            tensor = tensors[f"{name}.{part}"]
            tensor[span] = matrix @ tensor[span]


def test_grouped_models_are_grouped_further(tmp_path: Path) -> None:
    """What a key head absorbs goes into every query that reads it."""
    model = tiny_models.build("llama", "LlamaForCausalLM", num_key_value_heads=3)
    source = tiny_models.save(model, tmp_path / "grouped")
    out = convert(source, tmp_path / "out", gkv=1, merge="closed-form")
    result = verify(out, source)
    assert result["passed"], [check for check in result["checks"] if not check["passed"]]


def test_the_built_in_model_keeps_most_of_what_averaging_loses(tmp_path: Path) -> None:
    """On text held out from its training; docs/methods.md gives the figures."""
    sequences = held_out_windows(4096)

    def loss(folder: Path) -> float:
        return language_loss(load_causal_lm(folder), sequences).nats_per_token

    original = loss(MODEL)
    for gkv in (4, 1):
        rises = [
            loss(convert(MODEL, tmp_path / f"{merge}-{gkv}", gkv=gkv, merge=merge)) - original
            for merge in ("closed-form", "mean")
        ]
        assert 0 < rises[0] < 0.25 * rises[1]


def test_damaged_weights_are_refused(tmp_path: Path, gqkva: Callable[..., Result]) -> None:
    """NaN must not reach an eigenvalue routine."""
    model = tiny_models.build("llama", "LlamaForCausalLM")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[3, 3] = float("nan")
    source = tiny_models.save(model, tmp_path / "nan")
    result = gqkva("convert", source, tmp_path / "out", "--gkv", "2", "--merge", "closed-form")
    assert result.exit_code == 6
    assert "model.layers.1.self_attn.q_proj.weight" in result.stderr
    assert not (tmp_path / "out").exists()
