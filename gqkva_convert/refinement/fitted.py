"""Merged heads refined on data, block by block; kept on disk until they are written."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from gqkva_convert.calibration.network import attention_blocks
from gqkva_convert.checkpoint.cache import cache_folder, make_cache
from gqkva_convert.checkpoint.jsonfile import read_json, replace_json
from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.heads import Place
from gqkva_convert.plans.plan import BlockPlan, GroupRules, Plan
from gqkva_convert.progress import Stages
from gqkva_convert.refinement.block_data import BlockData
from gqkva_convert.refinement.block_network import BlockNetwork, TensorHeads, sequences, to_arrays, to_tensors
from gqkva_convert.refinement.calibrated import CalibratedModel
from gqkva_convert.refinement.fit import refine_block
from gqkva_convert.refinement.layerwise import FitSettings
from gqkva_convert.source.stored_block import gain_moments, read_heads
from gqkva_convert.steps.blocks import block_merges
from gqkva_convert.steps.step import BlockMerge
from gqkva_convert.transforms.blocks import Heads, merge_heads

# Fits that were never written are removed after a week.
_KEPT_SECONDS = 7 * 86400


class BlockLaboratory:
    """A block with its recorded data, where merges can be tried.

    Args:
        merge: The block and its merge.
        calibrated: The source with its data.
        reader: Reader of the source.
        places: All blocks that will be tried, so that one pass records them all.
    """

    def __init__(
        self, merge: BlockMerge, calibrated: CalibratedModel, reader: TensorReader, places: set[Place]
    ) -> None:
        self.calibrated = calibrated
        self.merge = merge
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.source = read_heads(merge.block, reader)
        self.gains = gain_moments(merge.block, reader)
        self.calls, self.learned_numbers, self.held_numbers = calibrated.recorded(places)
        module = attention_blocks(calibrated.network)[merge.block.place]
        self.network = BlockNetwork(merge.block, merge.plan, module, self.device)
        self.output = torch.cat([torch.from_numpy(head).float() for head in self.source["output"]]).to(
            self.device
        )

    def sequences(self, numbers: list[int]) -> Iterator[dict[str, Any]]:
        """Yield the block's calls in some batches, one per sequence."""
        for call in self.calls.of(self.merge.block.place, numbers):
            yield from sequences(call)

    def data(self, numbers: list[int], most: int | None = None) -> BlockData:
        """Return the block's first ``most`` calls in some batches, with the original's answers."""
        return BlockData(self.network, list(islice(self.sequences(numbers), most)), self.output)

    @cached_property
    def learned(self) -> BlockData:
        return self.data(self.learned_numbers)

    @cached_property
    def held(self) -> BlockData:
        return self.data(self.held_numbers)

    def merged(self, rule: str | None = None, plan: BlockPlan | None = None) -> TensorHeads:
        """Merge the heads under a rule or the plan's, and under another plan where one is given."""
        merge = replace(self.merge, plan=plan or self.merge.plan)
        if rule is not None:
            merge = replace(merge, rules=GroupRules.same(rule, merge.plan.target))
        measured = self.calibrated.measured(merge.block.place)
        return to_tensors(merge_heads(merge.head_merge(), self.source, self.gains, measured), self.device)

    @property
    def original_outputs(self) -> TensorHeads:
        """Return the block's own output blocks by place in the result."""
        head_dim = self.merge.plan.source.head_dim
        return {
            ("output", place): self.output[head * head_dim : (head + 1) * head_dim]
            for head, place in enumerate(self.network.places)
        }


class FittedBlocks:
    """The refined heads of a conversion, a file for each block under a name that its settings decide.

    Args:
        plan: The conversion's plan.
        calibrated: The source with its data.
    """

    def __init__(self, plan: Plan, calibrated: CalibratedModel, settings: FitSettings) -> None:
        self.plan = plan
        self.calibrated = calibrated
        self.settings = settings
        identity = json.dumps([plan.to_dict(), calibrated.key, vars(settings)], sort_keys=True)
        self.folder = cache_folder() / "fits" / hashlib.sha256(identity.encode()).hexdigest()

    def fit(self, stages: Stages) -> dict[str, dict[str, float]]:
        """Refine every block that is not refined yet.

        Returns:
            For each block, the held-out error before and after each refinement.
        """
        from safetensors.torch import save_file

        for old in make_cache("fits").iterdir():
            if time.time() - old.stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        model = self.calibrated.model
        merges = block_merges(model, self.plan)
        advance = stages(f"refining ({', '.join(self.plan.refine)})", len(merges))
        errors: dict[str, dict[str, float]] = {}
        with model.checkpoint.reader() as reader:
            for place, merge in merges.items():
                note, file = self.folder / f"{_name(place)}.json", self._file(place)
                if not (note.is_file() and file.is_file()):
                    laboratory = BlockLaboratory(merge, self.calibrated, reader, set(merges))
                    heads, found = refine_block(
                        laboratory.merged(),
                        laboratory.learned,
                        laboratory.held,
                        self.plan.refine,
                        self.settings,
                    )
                    scratch = file.with_suffix(".new")
                    save_file(
                        {f"{role}.{number}": head.contiguous() for (role, number), head in heads.items()},
                        scratch,
                    )
                    scratch.replace(file)
                    replace_json(note, found)
                errors[_name(place)] = read_json(note)
                advance(1)
        return errors

    def heads(self, place: Place) -> Heads | None:
        """Return a block's refined heads, if it has any."""
        from safetensors.torch import load_file

        file = self._file(place)
        if not file.is_file():
            return None
        tensors: dict[str, Any] = load_file(file)
        return to_arrays(
            {(name.split(".")[0], int(name.split(".")[1])): head for name, head in tensors.items()}
        )

    def clear(self) -> None:
        """Remove the files, once their heads are written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, place: Place) -> Path:
        return self.folder / f"{_name(place)}.safetensors"


def _name(place: Place) -> str:
    return f"{place[0]}-{place[1]:03d}"
