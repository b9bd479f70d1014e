"""Sequences of many lengths run side by side and give what each gives alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.calibration.capture import record
from gqkva_convert.calibration.network import attention_blocks, load_network
from gqkva_convert.heads import Variant
from gqkva_convert.plans.plan import make_plan
from gqkva_convert.refinement.block_data import BlockData
from gqkva_convert.refinement.block_network import BlockNetwork, TensorHeads, sequences, to_tensors
from gqkva_convert.source.model import open_model
from gqkva_convert.source.stored_block import stored_block
from gqkva_convert.steps.blocks import block_merge
from gqkva_convert.steps.merged_blocks import merge_block

Tiny = Callable[[str], Path]
# Lengths of the sequences of three batches, each padded to its longest.
LENGTHS = ((7, 7, 3), (11,), (5, 11, 2, 9, 11))


@pytest.fixture(scope="module", params=["bert", "llama", "distilbert", "gpt2"])
def recorded(
    request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BlockData, TensorHeads, torch.Tensor]:
    """Layer 1 with sequences of several lengths."""
    family, folder = request.param, tiny(request.param)
    network = load_network(folder, 1, FAMILIES[family].architecture)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for lengths in LENGTHS:
        width = max(lengths)
        ids = torch.randint(3, 30, (len(lengths), width), generator=generator)
        mask = torch.tensor([[int(at < length) for at in range(width)] for length in lengths])
        batches.append({"input_ids": ids, "attention_mask": mask})
    model = open_model(folder)
    plan = make_plan(model, Variant(None, 2))
    place = next(b.place for b in model.blocks if b.layer == 1)
    calls = record(network, batches, tmp_path_factory.mktemp("calls"), places={place})
    parts = [part for call in calls.of(place, [0, 1, 2]) for part in sequences(call)]
    block, block_plan = model.blocks[1], plan.blocks[1]
    merge = block_merge(stored_block(model, block), block_plan, plan)
    assert merge is not None
    with model.checkpoint.reader() as reader:
        heads = to_tensors(merge_block(merge, reader), torch.device("cpu"))
    alone = BlockNetwork(merge.block, block_plan, attention_blocks(network)[place], torch.device("cpu"))
    output = torch.randn(alone.output_weight(heads).shape, generator=generator)
    return BlockData(alone, parts, output), heads, output


def test_sequences_side_by_side_answer_as_alone(
    recorded: tuple[BlockData, TensorHeads, torch.Tensor],
) -> None:
    """Padding counts nowhere, and each answer stands at its own sequence."""
    data, heads, output = recorded
    assert [len(answer) for answer in data.answers] == [length for some in LENGTHS for length in some]
    assert sum(len(numbers) for numbers in data.alike) == len(data.calls)
    assert max(len(numbers) for numbers in data.alike) >= 3
    missing = energy = 0.0
    with torch.no_grad():
        for call, answer in zip(data.calls, data.answers, strict=True):
            torch.testing.assert_close(answer, data.network.attended(None, call) @ output)
            given = data.network.attended(heads, call) @ data.network.output_weight(heads)
            missing += float((given - answer).square().sum())
            energy += float(answer.square().sum())
    assert data.error(heads) == pytest.approx(missing / energy, rel=1e-4)


@pytest.mark.parametrize("positions", [1, 8, 20, 1000])
def test_a_step_has_positions_enough_and_an_epoch_repeats_nothing(
    positions: int, recorded: tuple[BlockData, TensorHeads, torch.Tensor]
) -> None:
    """Every part of one shape; the same seed gives the same order."""
    data, _, _ = recorded
    total = sum(map(len, data.answers))
    steps = list(islice(data.draws(positions, 3), 12))
    assert steps == list(islice(data.draws(positions, 3), 12))
    assert steps != list(islice(data.draws(positions, 4), 12)) or positions > total
    seen: list[int] = []
    for step in steps:
        numbers = [number for part in step for number in part]
        assert sum(len(data.answers[number]) for number in numbers) >= min(positions, total)
        assert all(any(set(part) <= set(alike) for alike in data.alike) for part in step)
        if set(numbers) & set(seen):
            seen = []
        assert len(set(numbers)) == len(numbers)
        seen += numbers
