"""Attention scores of a block on its own are those of the model, and a fit can match them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.calibration.capture import record
from gqkva_convert.calibration.network import attention_blocks, load_network
from gqkva_convert.plans.plan import BlockPlan
from gqkva_convert.refinement.attention_calls import AttentionCall, observing, score_error
from gqkva_convert.refinement.block_network import BlockNetwork
from gqkva_convert.source.model import open_model
from gqkva_convert.source.stored_block import stored_block

Tiny = Callable[[str], Path]


def blocks_alone(
    family: str, folder: Path, scratch: Path
) -> tuple[Any, dict[str, torch.Tensor], dict[str, tuple[BlockNetwork, dict[str, Any]]]]:
    """A network, its inputs, and by kind the block of layer 0 with the call it got."""
    network = load_network(folder, 1, FAMILIES[family].architecture)
    inputs = tiny_models.inputs(network)
    places = {(attention.kind, 0) for attention in FAMILIES[family].attention}
    calls = record(network, [inputs], scratch, places=places)
    alone = {}
    model = open_model(folder)
    for block in model.blocks:
        place = block.place
        if place in places:
            plan, module = BlockPlan.unchanged(place, block.layout), attention_blocks(network)[place]
            alone[place[0]] = (
                BlockNetwork(stored_block(model, block), plan, module, torch.device("cpu")),
                next(iter(calls.of(place, [0]))),
            )
    return network, inputs, alone


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_its_scores(family: str, tiny: Tiny, tmp_path: Path) -> None:
    """One attention function a block, as many heads as it has; none is matched by its output alone."""
    _, _, alone = blocks_alone(family, tiny(family), tmp_path)
    assert alone
    for block, call in alone.values():
        with observing() as found:
            block.attended(None, call)
        (one,) = found
        assert one.query.shape[1] == block.plan.source.num_attention_heads
        assert one.scores.shape == (*one.query.shape[:3], one.key.shape[2])
        assert torch.isfinite(one.scores).all()
        assert float(score_error(one, one)) == 0
        block.attended(None, call)
        assert len(found) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bert", "vit"])
def test_their_softmax_is_the_model_s(family: str, tiny: Tiny, tmp_path: Path) -> None:
    """Rotated, scaled and masked as in the stock model run with plain formulas."""
    network, inputs, alone = blocks_alone(family, tiny(family), tmp_path)
    ((block, call),) = alone.values()
    with observing() as found:
        block.attended(None, call)
    probabilities = found[0].scores.masked_fill(~found[0].allowed, float("-inf")).softmax(-1)
    network.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = network(**inputs, output_attentions=True).attentions[0]
    valid = call["valid"]
    kept = torch.ones(expected.shape[0], expected.shape[2]) if valid is None else valid
    rows = kept.bool()[:, None, :, None].expand_as(expected)
    torch.testing.assert_close(probabilities[rows], expected[rows], rtol=1e-4, atol=1e-5)


def test_what_softmax_ignores_is_no_error() -> None:
    """The same vector on every key moves each row of scores by a constant."""
    query, key = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    allowed = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    one = AttentionCall(query, key, allowed, 0.5)
    moved = AttentionCall(query, key + torch.randn(4), allowed, 0.5)
    other = AttentionCall(query, key * 1.5, allowed, 0.5)
    assert float(score_error(moved, one)) < 1e-10
    assert float(score_error(other, one)) == pytest.approx(0.25, rel=1e-4)
    some = torch.tensor([3, 1])
    torch.testing.assert_close(one.rows(some).scores, one.scores[:, :, some])
    broken = AttentionCall(query * torch.tensor([1, 1, 9, 1, 1])[:, None], key, allowed, 0.5)
    kept = torch.tensor([1, 1, 0, 1, 1]).expand(2, 5)
    assert float(score_error(broken, one, kept)) < 1e-10 < float(score_error(broken, one))
