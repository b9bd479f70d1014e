"""Heads that agree within their groups merge without loss, in every family and variant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from choices import pairs
from grouped_pairs import VARIANTS, plan_of
from safetensors.numpy import load_file

from gqkva_convert import convert, verify
from gqkva_convert.architectures import FAMILIES, Family
from gqkva_convert.conversion.excerpt import reversed_plan, write_excerpt
from gqkva_convert.source.model import open_model
from gqkva_convert.steps.make import make_steps

NATIVE = [name for name, family in FAMILIES.items() if family.is_native]
RULES = ("mean", "first", "norm-weighted")


@pytest.mark.parametrize(
    ("name", "options"),
    pairs(NATIVE, dealt=[{"gkv": gkv, "merge": merge} for merge in RULES for gkv in (1, 2)]),
)
def test_equal_heads_convert_back_to_the_grouped_model(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """A stock GQA model with its heads copied out is an MHA model; converting that gives it back.

    The default run: every rule with both numbers of heads in each kind of code path, every family once.
    """
    family, gkv = FAMILIES[name], options["gkv"]
    grouped = tiny_models.build(family.model_type, family.architecture, num_key_value_heads=gkv)
    copied_out = copy_heads_out(grouped, family, gkv)
    torch.testing.assert_close(
        tiny_models.outputs(copied_out), tiny_models.outputs(grouped), rtol=1e-4, atol=1e-5
    )
    tiny_models.save(grouped, tmp_path / "grouped")
    tiny_models.save(copied_out, tmp_path / "mha")
    out = convert(tmp_path / "mha", tmp_path / "out", **options)
    expected, found = (load_file(folder / "model.safetensors") for folder in (tmp_path / "grouped", out))
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor, err_msg=key)
    converted = tiny_models.load(out, family.architecture)
    assert converted.config.num_key_value_heads == gkv
    torch.testing.assert_close(tiny_models.outputs(converted), tiny_models.outputs(grouped), rtol=0, atol=0)


def copy_heads_out(grouped: Any, family: Family, gkv: int) -> Any:
    """The multi-head model that computes what a grouped model does, made with torch alone."""
    heads = tiny_models.HEADS
    config = grouped.config.to_dict() | {"num_key_value_heads": heads}
    model = type(grouped)(type(grouped.config)(**config)).eval()
    head_dim = getattr(grouped.config, "head_dim", None) or grouped.config.hidden_size // heads
    target = model.state_dict()
    state = {}
    for name, tensor in grouped.state_dict().items():
        if name in target and target[name].shape == tensor.shape:
            state[name] = tensor
        elif "qkv_proj" in name:
            query, key, value = tensor.split([heads * head_dim, gkv * head_dim, gkv * head_dim])
            state[name] = torch.cat([query, *(_repeat(part, gkv, heads) for part in (key, value))])
        else:
            state[name] = _repeat(tensor, gkv, heads)
    for name in target:  # StableLM has one norm tensor a head
        front, found, rest = name.partition("k_layernorm.norms.")
        if found:
            number, _, back = rest.partition(".")
            state[name] = grouped.state_dict()[f"{front}{found}{int(number) * gkv // heads}.{back}"]
    model.load_state_dict(state)
    return model


def _repeat(tensor: torch.Tensor, gkv: int, heads: int) -> torch.Tensor:
    return tensor.unflatten(0, (gkv, -1)).repeat_interleave(heads // gkv, dim=0).flatten(0, 1)


@pytest.mark.parametrize("family", NATIVE)
@pytest.mark.parametrize("grouping", ["random", pytest.param("neighbour", marks=pytest.mark.slow)])
def test_verify_proves_every_native_conversion(
    family: str, grouping: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """The proof includes running the result in stock transformers against the plan applied in memory."""
    out = convert(tiny(family), tmp_path / "out", gkv=2, grouping=grouping, seed=5)
    result = verify(out, tiny(family))
    assert result["passed"], [check for check in result["checks"] if not check["passed"]]
    assert {check["check"] for check in result["checks"]} >= {"tied-heads control", "logits"}


@pytest.mark.parametrize(
    ("family", "variant"),
    pairs(
        FAMILIES,
        always=("GQKVA",),
        dealt=[name for name in VARIANTS if name not in ("MHA", "mixed", "GQKVA")],
    ),
)
def test_merging_what_was_expanded_changes_no_byte(
    family: str, variant: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every packing, axis, bias and norm of every family must find its heads again, whatever the layout.

    The default run: every family with shared queries and with another layout, every layout in each kind of
    code path.
    """
    model = open_model(tiny(family))
    plan = plan_of(model, variant)
    layers = range(1 + max(block.layer for block in model.blocks))
    merged, expanded, again = (tmp_path / name for name in ("merged", "expanded", "again"))
    write_excerpt(model, plan, make_steps(model, plan), layers, merged)
    merged_model = open_model(merged)
    back = reversed_plan(plan)
    write_excerpt(merged_model, back, make_steps(merged_model, back), layers, expanded)
    expanded_model = open_model(expanded)
    write_excerpt(expanded_model, plan, make_steps(expanded_model, plan), layers, again)
    first, second = (load_file(folder / "model.safetensors") for folder in (merged, again))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    stock = tiny_models.load(expanded, FAMILIES[family].architecture)
    assert torch.isfinite(tiny_models.outputs(stock)).all()
