"""One block run on its own is the block in its model, for every family and packing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from choices import pairs

from gqkva_convert import convert
from gqkva_convert.architectures import FAMILIES
from gqkva_convert.calibration.capture import record
from gqkva_convert.calibration.network import attention_blocks, load_network
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.plans.plan import Plan
from gqkva_convert.records.report import read_report
from gqkva_convert.refinement.block_network import BlockNetwork, sequences, to_tensors
from gqkva_convert.source.model import open_model
from gqkva_convert.source.stored_block import stored_block
from gqkva_convert.steps.blocks import block_merge
from gqkva_convert.steps.merged_blocks import merge_block

Tiny = Callable[[str], Path]
OUTPUTS = ("o_proj", "out_proj", "out_lin", "dense", "c_proj", "o")


def attended_in(model: Any, place: tuple[str, int], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a block of a whole model gives to its output projection."""
    block = attention_blocks(model)[place]
    found: list[torch.Tensor] = []
    name = next((name for name in OUTPUTS if hasattr(block, name)), None)
    if name is None:  # BERT: the projection stands outside
        hook = block.register_forward_hook(lambda module, args, output: found.append(output[0]))
    else:
        hook = getattr(block, name).register_forward_pre_hook(lambda module, args: found.append(args[0]))
    with torch.inference_mode():
        model(**inputs)
    hook.remove()
    return found[0].flatten(0, -2)


@pytest.mark.parametrize(
    ("family", "options"),
    pairs(FAMILIES, dealt=({"gkv": 2, "merge": "closed-form"}, {"gq": 2, "gkv": 3, "merge": "aligned"})),
)
def test_merged_heads_attend_as_in_the_converted_model(
    family: str, options: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    """Packings, biases, norms, positions: a block fitted here must be the block that is written.

    The default run: every family with one rule, both rules in each kind of code path.
    """
    facts = FAMILIES[family]
    kinds = [attention.kind for attention in facts.attention]
    if family in ("clip", "siglip") and "gq" in options:
        kinds, options = ["text"], options | {"blocks": "text"}
    source, out = tiny(family), convert(tiny(family), tmp_path / "out", **options)
    network = load_network(source, 1, facts.architecture)
    inputs = tiny_models.inputs(network)
    places = {(kind, 0) for kind in kinds}
    (tmp_path / "calls").mkdir()
    calls = record(network, [inputs], tmp_path / "calls", places=places)
    model, plan = open_model(source), Plan.from_report(read_report(out))
    converted = load_model(out, facts.architecture)
    with model.checkpoint.reader() as reader:
        for block, block_plan in zip(model.blocks, plan.blocks, strict=True):
            place = block_plan.place
            # Blocks behind another converted block read other inputs in the converted model.
            if place not in places or (place[0] in ("decoder", "cross") and family != "t5"):
                continue
            merge = block_merge(stored_block(model, block), block_plan, plan)
            assert merge is not None
            module = attention_blocks(network)[place]
            alone = BlockNetwork(merge.block, block_plan, module, torch.device("cpu"))
            parts = [part for call in calls.of(place, [0]) for part in sequences(call)]
            own = torch.cat([alone.attended(None, part) for part in parts])
            torch.testing.assert_close(own, attended_in(network, place, inputs), rtol=1e-4, atol=1e-5)
            if place[0] in ("decoder", "cross"):
                continue
            heads = to_tensors(merge_block(merge, reader), torch.device("cpu"))
            merged = torch.cat([alone.attended(heads, part) for part in parts])
            expected = attended_in(converted, place, inputs)
            torch.testing.assert_close(merged, expected, rtol=1e-3, atol=1e-4)
