"""The family tables against what the installed transformers really writes and computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers

from gqkva_convert.architectures import FAMILIES, Family
from gqkva_convert.conversion.excerpt import write_excerpt
from gqkva_convert.heads import HeadLayout
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.source.model import block_layout, config_number, open_model
from gqkva_convert.steps.make import make_steps

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
NATIVE = [family for family in FAMILIES.values() if family.is_native]
OTHERS = [family for family in FAMILIES.values() if not family.is_native]
ROTARY = [family for family in FAMILIES.values() if family.attention[0].rotary is not None]

TinyFolder = Callable[[str], Path]


def unchanged(folder: Path) -> Plan:
    model = open_model(folder)
    blocks = tuple(
        BlockPlan(b.attention.kind, b.layer, b.layout, b.layout, tuple(range(b.layout.num_attention_heads)))
        for b in model.blocks
    )
    return Plan("same", "neighbour", "mean", 0, None, blocks)


@every_family
def test_every_tensor_that_transformers_writes_is_known(family: Family, tiny: TinyFolder) -> None:
    """A tensor the table does not know would stop every conversion of the family."""
    model = open_model(tiny(family.model_type))
    steps = make_steps(model, unchanged(tiny(family.model_type)))
    assert {step.name for step in steps.steps} == set(model.checkpoint.tensors)
    assert all(step.is_copy for step in steps.steps)
    assert steps.dropped == {}


def unexplained(folder: Path) -> list[str]:
    """Projections whose stored shape is not that of the layout's heads."""
    found = []
    model = open_model(folder)
    for block in model.blocks:
        for projection in block.attention.projections:
            name = block.tensor_name(f"{projection.name}.weight")
            shape = model.checkpoint.tensors[name].shape
            heads = sum(
                block.layout.num_attention_heads
                if role == "output"
                else len(set(block.layout.stored_heads(role)))
                for role in projection.roles
            )
            if shape[projection.head_axis] != heads * block.layout.head_dim:
                found.append(name)
    return found


def test_the_layout_is_the_one_transformers_built(tiny: TinyFolder) -> None:
    """Heads and head_dim come from configuration words; here they must explain the stored shapes."""
    assert {name: names for name in FAMILIES if (names := unexplained(tiny(name)))} == {}


@every_family
def test_a_base_model_saved_alone_is_known_too(family: Family, tiny: TinyFolder, tmp_path: Path) -> None:
    """Users convert `BertModel` and `LlamaModel` checkpoints, which lack the base model's prefix."""
    head = tiny_models.load(tiny(family.model_type), family.architecture)
    folder = tiny_models.save(head.base_model, tmp_path / "base")
    model = open_model(folder)
    assert make_steps(model, unchanged(folder)).dropped == {}
    assert len(model.blocks) == len(open_model(tiny(family.model_type)).blocks)


@pytest.mark.parametrize("family", NATIVE, ids=lambda family: family.model_type)
def test_native_families_build_fewer_key_value_heads(family: Family) -> None:
    """`is_native` promises that stock transformers reads num_key_value_heads."""
    model = tiny_models.build(family.model_type, family.architecture, num_key_value_heads=2)
    names = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    key = next(p for p in family.attention[0].projections if "key" in p.roles)
    shape = names[family.prefixes[0] + key.name.replace("{layer}", "0") + ".weight"]
    head_dim = config_number(json.loads(model.config.to_json_string()), family.attention[0].head_dim)
    heads = (tiny_models.HEADS + 4) if key.packing == "stacked" else 2
    assert shape[0] == heads * head_dim


@pytest.mark.parametrize("family", OTHERS, ids=lambda family: family.model_type)
def test_other_families_ignore_num_key_value_heads(family: Family, tiny: TinyFolder, tmp_path: Path) -> None:
    """These families accept the key and do nothing with it, so a configuration that has it is refused."""
    plain = tiny_models.build(family.model_type, family.architecture)
    with_key = tiny_models.build(family.model_type, family.architecture, num_key_value_heads=2)
    assert {n: p.shape for n, p in plain.state_dict().items()} == {
        n: p.shape for n, p in with_key.state_dict().items()
    }


def test_absent_keys_mean_what_they_mean_to_transformers() -> None:
    """Old configurations leave keys out; a wrong default would mistake MHA for GQA or lose head_dim."""
    read, meant = {}, {}
    for family in NATIVE:
        config = {"model_type": family.model_type, "hidden_size": 4096, "num_attention_heads": 32}
        stock = transformers.AutoConfig.for_model(**config)
        built = block_layout(config, family.attention[0])
        read[family.model_type] = (built.num_key_heads, built.head_dim)
        head_dim = getattr(stock, "head_dim", None) or 128
        meant[family.model_type] = (stock.num_key_value_heads, head_dim)
    assert read == meant


@pytest.mark.parametrize("family", ROTARY, ids=lambda family: family.model_type)
def test_rotary_facts_are_those_of_the_model(family: Family) -> None:
    """Turning each rotary plane of K and Q alike changes nothing, but only in the right planes."""
    norms_off = {"qk_layernorm": False} if family.model_type in ("phi", "stablelm") else {}
    if family.model_type in ("qwen3", "olmo2"):
        pytest.skip("a norm with gains stands between the projection and the rotation")
    model = tiny_models.build(family.model_type, family.architecture, **norms_off)
    before = tiny_models.outputs(model)
    rotary = family.attention[0].rotary
    assert rotary is not None
    _turn_planes(model, family, rotary.style, rotary.fraction)
    torch.testing.assert_close(tiny_models.outputs(model), before, rtol=1e-4, atol=1e-4)
    wrong = "interleaved" if rotary.style == "half" else "half"
    if rotary.fraction * _head_dim(model) > 2:  # one plane alone is the same in either style
        _turn_planes(model, family, wrong, rotary.fraction)
        assert (tiny_models.outputs(model) - before).abs().max() > 1e-2


def _head_dim(model: Any) -> int:
    config = model.config
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@torch.no_grad()
def _turn_planes(model: Any, family: Family, style: str, fraction: float) -> None:
    """Multiply every plane of every key by its own rotation, and of every query by the same."""
    head_dim = _head_dim(model)
    turned = int(head_dim * fraction)
    half = turned // 2
    generator = torch.Generator().manual_seed(3)
    rotation = torch.eye(head_dim)
    for plane in range(half):
        angle = 6.28 * torch.rand((), generator=generator)
        one, two = (plane, plane + half) if style == "half" else (2 * plane, 2 * plane + 1)
        rotation[one, one] = rotation[two, two] = angle.cos()
        rotation[one, two], rotation[two, one] = -angle.sin(), angle.sin()
    state = dict(model.named_parameters())
    attention = family.attention[0]
    for layer in range(model.config.num_hidden_layers):
        for projection in attention.projections:
            for part in ("weight", "bias"):
                name = f"{family.prefixes[0]}{projection.name.replace('{layer}', str(layer))}.{part}"
                if projection.roles == ("output",) or name not in state:
                    continue
                heads = state[name].data.unflatten(0, (-1, head_dim))
                for role in ("query", "key"):
                    if role in projection.roles:
                        index = _role_heads(projection, role)
                        heads[index] = torch.einsum("ij,hj...->hi...", rotation, heads[index])


def _role_heads(projection: Any, role: str) -> list[int]:
    place, roles, heads = projection.roles.index(role), len(projection.roles), tiny_models.HEADS
    if projection.packing == "per_head":
        return [head * roles + place for head in range(heads)]
    return [place * heads + head for head in range(heads)]


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES.values() if f.model_type != "t5"], ids=lambda family: family.model_type
)
def test_heads_may_be_reordered_with_the_output_projection(
    family: Family, tiny: TinyFolder, tmp_path: Path
) -> None:
    """Order, packing, transpose, biases and per-head norms all have to agree for the logits to survive."""
    folder = tiny(family.model_type)
    model = open_model(folder)
    blocks = []
    for block in model.blocks:
        heads = block.layout.num_attention_heads
        order = tuple((head * 5 + block.layer + 1) % heads for head in range(heads))
        blocks.append(BlockPlan(block.attention.kind, block.layer, block.layout, block.layout, order))
    plan = Plan("reordered", "neighbour", "mean", 0, None, tuple(blocks))
    steps = make_steps(model, plan)
    assert any(step.operation == "reorder" for step in steps.steps)
    layers = range(1 + max(block.layer for block in model.blocks))
    out = tmp_path / "reordered"
    write_excerpt(model, plan, steps, layers, out)
    (out / "config.json").write_text((folder / "config.json").read_text())
    before = tiny_models.outputs(tiny_models.load(folder, family.architecture))
    after = tiny_models.outputs(tiny_models.load(out, family.architecture))
    # Sums in another order round otherwise, by as much as their largest terms say.
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5 * max(1.0, float(before.abs().max())))


def test_heads_with_a_bias_of_their_own_keep_their_places(tiny: TinyFolder) -> None:
    """T5's position bias has a column a head and one table for all layers, so its heads cannot move."""
    from gqkva_convert.heads import Variant
    from gqkva_convert.plans.plan import make_plan

    model = open_model(tiny("t5"))
    plan = make_plan(model, Variant(None, 2), grouping="random", seed=4)
    encoder = [block for block in plan.blocks if block.kind == "encoder"]
    assert all(block.order == tuple(range(tiny_models.HEADS)) for block in encoder)
    neighbours = HeadLayout.gqa(tiny_models.HEADS, 2, 4)
    assert any(block.target != neighbours for block in encoder)
    assert all(block.target.key.count(0) == 3 for block in encoder)
