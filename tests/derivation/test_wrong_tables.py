"""A wrong table must not pass: each of these is refused by the proof, and the right one is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import wrong_tables
from transformers.models.granite import modeling_granite

from gqkva_convert.architectures import FAMILIES, NATIVE, Family
from gqkva_convert.architectures.native import native
from gqkva_convert.derivation import instance, proof
from gqkva_convert.derivation.proof import prove
from gqkva_convert.derivation.stock import stock_config
from gqkva_convert.errors import FamilyError
from gqkva_convert.source.stored_block import StoredProjection, stored_block

# By signature: the tables that can be wrong in it, and one family that has it.
CASES: dict[str, tuple[str, dict[str, wrong_tables.Change]]] = {
    "plain": ("granite", wrong_tables.SEPARATE | wrong_tables.TURNING),
    "interleaved": ("cohere", wrong_tables.TURNING),
    "part of a head": ("nemotron", wrong_tables.PARTLY),
    "part of a head, interleaved": ("glm", wrong_tables.PARTLY | wrong_tables.BIASED),
    "fused": ("phi3", wrong_tables.FUSED | wrong_tables.TURNING),
    "shared norm": (
        "qwen3_moe",
        {name: change for name, change in wrong_tables.NORMED.items() if name != "norms exchanged"}
        | wrong_tables.SEPARATE
        | wrong_tables.TURNING,
    ),
    "norm of all heads": ("olmoe", wrong_tables.NORMED | wrong_tables.SEPARATE | wrong_tables.TURNING),
    "biases": ("seed_oss", wrong_tables.BIASED | wrong_tables.TURNING),
}
WRONG = [
    pytest.param(
        name, change, id=f"{signature}-{said}", marks=() if signature == "plain" else pytest.mark.slow
    )
    for signature, (name, changes) in CASES.items()
    for said, change in changes.items()
]


def table(name: str) -> Family:
    return NATIVE.get(name) or FAMILIES[name]


def config(name: str, **changes: Any) -> dict[str, Any]:
    """The default configuration with two layers, without the part of a head that turns."""
    values: dict[str, Any] = stock_config(name, {"num_hidden_layers": 2, **changes}).to_dict()
    for part in (values, values["rope_parameters"]):
        part.pop("partial_rotary_factor", None)
    return values


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "granite" else pytest.mark.slow)
        for name in dict.fromkeys(name for name, _ in CASES.values())
    ],
)
def test_the_right_table_is_proved(name: str) -> None:
    """Without this, everything would be refused."""
    found = prove(config(name), table(name))
    assert set(found.licences.values()) == {True}


@pytest.mark.parametrize(("name", "change"), WRONG)
def test_a_wrong_table_is_refused(name: str, change: wrong_tables.Change) -> None:
    with pytest.raises(FamilyError):
        prove(config(name), wrong_tables.changed(table(name), change))


@pytest.mark.parametrize("roles", [("key",), ("value",), ("query", "output"), ("key", "value"), ("output",)])
def test_heads_found_in_other_places_are_refused(
    roles: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every head of some roles taken for its neighbour."""

    def shifted(one: StoredProjection) -> StoredProjection:
        starts = {
            role: (*places[1:], places[0]) if role in roles else places for role, places in one.starts.items()
        }
        return replace(one, starts=starts)

    def found(*args: Any) -> Any:
        block = stored_block(*args)
        return replace(block, projections=tuple(map(shifted, block.projections)))

    monkeypatch.setattr(instance, "stored_block", found)
    with pytest.raises(FamilyError):
        prove(config("granite"), table("granite"))


def test_one_wrong_layer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second layer's planes alone are those of the other style."""

    def found(model: Any, block: Any) -> Any:
        read = stored_block(model, block)
        if block.layer != 1:
            return read
        pairs = range(0, 16, 2), range(1, 16, 2)
        return replace(read, planes=replace(read.planes, first=tuple(pairs[0]), second=tuple(pairs[1])))

    monkeypatch.setattr(instance, "stored_block", found)
    with pytest.raises(FamilyError, match="keys"):
        prove(config("granite"), table("granite"))


def test_heads_repeated_in_another_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stock class that deals key heads out in turn, where tables say neighbours share one."""
    monkeypatch.setattr(modeling_granite, "repeat_kv", lambda states, number: states.repeat(1, number, 1, 1))
    with pytest.raises(FamilyError, match="merge to 2"):
        prove(config("granite", num_attention_heads=32, num_key_value_heads=8), table("granite"))


@pytest.mark.parametrize(
    ("name", "rest"),
    [("afmoe", "self_attn.gate_proj.weight"), ("gpt_oss", "self_attn.sinks")],
)
def test_a_forgotten_gate_or_sink_is_refused(name: str, rest: str) -> None:
    """A parameter bound to heads, which the table says is copied."""
    norm: Any = "shared" if name == "afmoe" else None
    bias = wrong_tables.ALWAYS if name == "gpt_oss" else wrong_tables.NEVER
    forgetful = native(
        name,
        {"afmoe": "Afmoe", "gpt_oss": "GptOss"}[name],
        norm=norm,
        bias=bias,
        output_bias=bias,
        head_dim=wrong_tables.Key("head_dim", 128 if name == "afmoe" else 64),
        key_value_heads=stock_config(name, {}).num_key_value_heads,
        layer=("input_layernorm.weight", "mlp.*", "p*_layernorm.weight", rest),
        keys=tuple(stock_config(name, {}).to_dict()),
    )
    values = stock_config(name, {}).to_dict()
    with pytest.raises(FamilyError, match="reorder"):
        prove(values, forgetful)


def test_a_default_that_transformers_does_not_share_is_refused() -> None:
    """The configuration names no key/value heads."""
    values = {key: value for key, value in config("mixtral").items() if key != "num_key_value_heads"}
    (attention,) = table("mixtral").attention
    wrong = replace(attention, num_key_value_heads=wrong_tables.Key("num_key_value_heads", 4))
    with pytest.raises(FamilyError, match="transformers GQA-8"):
        prove(values, replace(table("mixtral"), attention=(wrong,)))


def test_clamps_take_licences_away() -> None:
    """Merging equal heads holds; mixing features does not, where values are large."""
    found = prove(config("olmoe", clip_qkv=8.0), table("olmoe"))
    assert found.licences["merge"]
    assert not found.licences["values"]


def test_attention_that_changes_nothing_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every edit of what the inputs do not reach leaves the logits as they are."""
    monkeypatch.setattr(
        modeling_granite, "eager_attention_forward", lambda _m, q, *_a, **_o: (torch.zeros_like(q.mT), None)
    )
    monkeypatch.setattr(proof, "_DIFFERENT", 1e-3)
    with pytest.raises(FamilyError, match="hardly changes"):
        prove(config("granite"), table("granite"))
