"""A running mean of weights, of a process's own part of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.tensor import Shard, distribute_tensor

from gqkva_convert.uptraining.engine.average import Average, local_part


def test_the_mean_of_sharded_weights_is_kept_of_this_processs_part(tmp_path: Path) -> None:
    """FSDP's weights are `DTensor`s, which a mean, and the search for NaN in checkpoints, read by shards."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        model = nn.Linear(2, 4, bias=False)
        model.weight = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)]))
        average = Average(model, 0.5)
        with torch.no_grad():
            local_part(model.weight).fill_(3.0)
        average.update()
        wanted = torch.full((4, 2), 1.0 + (1 - 2 / 11) * 2.0)
        with average.in_place():
            torch.testing.assert_close(local_part(model.weight), wanted)
        torch.testing.assert_close(local_part(model.weight), torch.full((4, 2), 3.0))
    finally:
        distributed.destroy_process_group()
