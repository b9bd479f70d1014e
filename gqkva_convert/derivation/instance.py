"""A small stock model beside its checkpoint, whose heads are changed where a table says that they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqkva_convert.architectures import Family
from gqkva_convert.checkpoint.folder import SAFETENSORS, open_checkpoint
from gqkva_convert.checkpoint.jsonfile import write_json
from gqkva_convert.derivation.stock import logits
from gqkva_convert.errors import FamilyError, first_line
from gqkva_convert.plans.config import converted_config
from gqkva_convert.plans.plan import Plan
from gqkva_convert.source.model import SourceModel, read_model
from gqkva_convert.source.stored_block import StoredBlock, StoredProjection, stored_block
from gqkva_convert.steps.execute import write_shards
from gqkva_convert.steps.make import make_steps
from gqkva_convert.steps.shards import Shard

Edit = Callable[["Heads"], None]


@dataclass
class Heads:
    """The heads of one block, as views into the tensors of a running model.

    Attributes:
        block: The block, as the table finds it in the checkpoint.
        tensors: Parameters of the running model by the name that they are stored under.
        norms: Gains of its norms on queries and keys.
    """

    block: StoredBlock
    tensors: dict[str, Tensor]
    norms: tuple[Tensor, ...]

    @property
    def stored(self) -> int:
        return self.block.layout.num_key_heads

    @property
    def readers(self) -> int:
        """Return how many attention heads read each stored head."""
        return self.block.layout.num_attention_heads // self.stored

    def change(self, role: str, maps: Tensor) -> None:
        """Multiply the features of each head of a role by a matrix of its own.

        Args:
            role: ``query``, ``key``, ``value`` or ``output``.
            maps: ``(heads, head_dim, head_dim)``.
        """
        one = self.block.projection(role)
        rows = _rows(one, role, self.block.layout.head_dim)
        weight = self.tensors[one.weight.name]
        view = weight if one.head_axis == 0 else weight.T
        view[rows] = (maps @ view[rows].view(*maps.shape[:2], -1)).flatten(0, 1)
        if one.bias is not None and role != "output":
            bias = self.tensors[one.bias.name]
            bias[rows] = (maps @ bias[rows].view(*maps.shape[:2], 1)).flatten()


def _rows(one: StoredProjection, role: str, head_dim: int) -> Tensor:
    starts = torch.tensor(one.starts[role])
    return (starts[:, None] + torch.arange(head_dim)).flatten()


class Instance:
    """A stock model in memory and the checkpoint that it was saved as.

    Args:
        model: The stock model.
        family: The table that reads its checkpoint.
        folder: Where to save it.
    """

    def __init__(self, model: Any, family: Family, folder: Path) -> None:
        model.save_pretrained(folder)
        self.model, self.family = model, family
        self.source = read_model(open_checkpoint(folder), family)
        self.blocks = [stored_block(self.source, block) for block in self.source.blocks]
        self.heads = [self._heads(block, number) for number, block in enumerate(self.blocks)]

    def _heads(self, block: StoredBlock, number: int) -> Heads:
        parts = [part for one in block.projections for part in (one.weight, one.bias) if part is not None]
        place = self.source.blocks[number]
        norms = [
            self._parameter(place.tensor_name(norm.name, head))
            for norm in block.norms
            for head in range(block.layout.num_key_heads if norm.span == "per_head" else 1)
        ]
        return Heads(block, {part.name: self._parameter(part.name) for part in parts}, tuple(norms))

    def _parameter(self, name: str) -> Tensor:
        """Return the parameter that is stored under a name."""
        tensor = self.source.checkpoint.tensors.get(name)
        if tensor is None:
            raise FamilyError(f"{name!r} is not stored")
        with self.source.checkpoint.reader() as reader:
            data = reader.read(tensor, 0, tensor.nbytes)
        for parameter in self.model.parameters():
            if (
                tuple(parameter.shape) == tensor.shape
                and parameter.detach().numpy().tobytes() == data.tobytes()
            ):
                found: Tensor = parameter.data
                return found
        raise FamilyError(f"{name!r} is stored in another form than the model holds it")

    def logits(self, *edits: Edit, only: int | None = None) -> Tensor:
        """Return the model's logits after edits of all blocks, or of one; they are undone."""
        saved = {name: tensor.clone() for heads in self.heads for name, tensor in heads.tensors.items()}
        norms = [norm.clone() for heads in self.heads for norm in heads.norms]
        try:
            for heads in self.heads if only is None else [self.heads[only]]:
                for edit in edits:
                    edit(heads)
            return logits(self.model)
        finally:
            for heads in self.heads:
                for name, tensor in heads.tensors.items():
                    tensor.copy_(saved[name])
            for norm, kept in zip((norm for heads in self.heads for norm in heads.norms), norms, strict=True):
                norm.copy_(kept)

    def converted(self, source: SourceModel, plan: Plan, folder: Path) -> SourceModel:
        """Convert a checkpoint as `convert` does, and return the result as the same table reads it."""
        folder.mkdir()
        shard = Shard(SAFETENSORS, make_steps(source, plan).steps)
        write_shards(source.checkpoint, plan, (shard,), folder, {"format": "pt"}, lambda _: None)
        write_json(folder / "config.json", converted_config(source, plan))
        return read_model(open_checkpoint(folder), self.family)

    def logits_of(self, source: SourceModel) -> Tensor:
        """Return the logits of a checkpoint, loaded by stock transformers."""
        options = {"dtype": torch.float64, "attn_implementation": "eager", "output_loading_info": True}
        try:
            loaded, info = type(self.model).from_pretrained(source.checkpoint.folder, **options)
        except Exception as error:  # whatever transformers raises for a model that it cannot load
            raise FamilyError(f"transformers cannot load the converted model: {first_line(error)}") from error
        wrong = [
            name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]
        ]
        if wrong:
            raise FamilyError(f"transformers does not load the converted model's {wrong[0]}")
        loaded.eval()
        loaded.config._experts_implementation = "eager"
        return logits(loaded)
