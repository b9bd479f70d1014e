"""One attention block run on its own, with the heads of a conversion in place of its own.

The stock block runs with every head replaced by the head it was merged into, so that no family needs code
here; its output projection is removed, and applied outside.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gqkva_convert.errors import NotExpressibleError
from gqkva_convert.heads import ROLES
from gqkva_convert.modeling.resize import find_output, find_projection, is_fused, norm_names
from gqkva_convert.plans.plan import BlockPlan
from gqkva_convert.refinement.attention_calls import watch
from gqkva_convert.source.stored_block import StoredBlock, StoredProjection
from gqkva_convert.transforms.blocks import Heads

# A stored head of the conversion by role and number, as `blocks.Heads`.
TensorHeads = dict[tuple[str, int], Tensor]


class BlockNetwork:
    """A block of the source that can be run with merged heads.

    Args:
        block: The block as the source stores it.
        plan: Its layouts and groups.
        module: Its module in the source's network, on any device or offloaded.
        device: Where to run.

    Raises:
        NotExpressibleError: A source head would have to be two different merged heads at once.
    """

    def __init__(self, block: StoredBlock, plan: BlockPlan, module: nn.Module, device: torch.device) -> None:
        self.block = block
        self.device = device
        self.module, self.state = _standalone(module, device)
        self._regroup(plan)

    def regrouped(self, plan: BlockPlan) -> BlockNetwork:
        """Return the same block under another plan; both share module and parameters."""
        other = copy.copy(self)
        other._regroup(plan)
        return other

    def _regroup(self, plan: BlockPlan) -> None:
        self.plan = plan
        self.places = [plan.order.index(head) for head in range(plan.source.num_attention_heads)]
        self.read = {role: self._read(role) for role in ROLES}

    def _read(self, role: str) -> list[int]:
        """Return, for each stored head of the source, the merged head that its readers read."""
        source, target = self.plan.source.stored_heads(role), self.plan.target.stored_heads(role)
        found: dict[int, int] = {}
        for head, place in enumerate(self.places):
            if found.setdefault(source[head], target[place]) != target[place]:
                raise NotExpressibleError(
                    f"{self.block.where}: {role} head {source[head]} would become two merged heads; "
                    "refinement needs each to become one"
                )
        return [found[stored] for stored in sorted(found)]

    def attended(self, heads: TensorHeads | None, call: dict[str, Any]) -> Tensor:
        """Run the block without its output projection, at positions that are not padding.

        Args:
            heads: Merged heads; None for the block's own.
            call: Arguments of the block.

        Returns:
            ``(positions, heads * head_dim)``, heads in the source's order.
        """
        from accelerate.utils import recursively_apply

        state = self.state if heads is None else self.state | self._expand(heads)
        args, kwargs = recursively_apply(self._move, (tuple(call["args"]), call["kwargs"]))
        found: Any = torch.func.functional_call(self.module, state, args, kwargs)
        attended: Tensor = found[0] if isinstance(found, tuple) else found
        attended = attended.flatten(0, -2)
        valid = call["valid"]
        return attended if valid is None else attended[valid.flatten().bool().to(attended.device)]

    def _move(self, value: Tensor) -> Tensor:
        return value.to(self.device, torch.float32 if value.is_floating_point() else None)

    def output_weight(self, heads: TensorHeads) -> Tensor:
        """Return the merged output projection, ``(heads * head_dim, hidden)``, in the source's order."""
        return torch.cat([heads["output", place] for place in self.places])

    def _expand(self, heads: TensorHeads) -> dict[str, Tensor]:
        """Return the source block's parameters with every head replaced by the one it was merged into."""
        rows = {role: torch.cat([heads[role, stored] for stored in self.read[role]]) for role in ROLES}
        parameters: dict[str, Tensor] = {}
        for projection in self.block.projections:
            if projection.roles == ("output",):
                continue
            name = find_projection(self.module, projection.roles[0])
            joined = torch.cat([rows[role] for role in projection.roles])
            if is_fused(self.module):
                joined = joined[self._row_order(projection).to(joined.device)]
            inputs = self.state[f"{name}.weight"].shape[1 - projection.head_axis]
            weight = joined[:, :inputs]
            parameters[f"{name}.weight"] = weight if projection.head_axis == 0 else weight.T
            if projection.bias is not None:
                parameters[f"{name}.bias"] = joined[:, -1]
        for norm in self.block.norms:
            if norm.span != "shared":
                parameters |= self._merge_gains(norm.role, norm.span, self.plan.source.head_dim)
        return parameters

    def _row_order(self, projection: StoredProjection) -> Tensor:
        """Return the index of each row of a fused projection where roles follow one another."""
        starts = [start for role in projection.roles for start in projection.starts[role]]
        rows = torch.tensor(starts)[:, None] + torch.arange(self.plan.source.head_dim)
        return rows.flatten().argsort()

    def _merge_gains(self, role: str, span: str, head_dim: int) -> dict[str, Tensor]:
        """Return the gains of a norm with one per head, each replaced by its group's mean."""
        names = [name for name in self.state if name.startswith(norm_names(role))]
        groups = self.plan.groups(role)
        if span == "all_heads":
            return {
                name: torch.cat(
                    [
                        self.state[name].view(-1, head_dim)[list(groups[stored])].mean(0)
                        for stored in self.read[role]
                    ]
                )
                for name in names
            }
        by_head = {int(name.split(".")[-2]): name for name in names}
        return {
            by_head[head]: torch.stack([self.state[by_head[member]] for member in groups[stored]]).mean(0)
            for head, stored in enumerate(self.read[role])
        }


def to_tensors(heads: Heads, device: torch.device) -> TensorHeads:
    """Convert merged heads to float32 tensors."""
    return {name: torch.from_numpy(head).to(device, torch.float32) for name, head in heads.items()}


def to_arrays(heads: TensorHeads) -> Heads:
    """Convert tensors to float64 heads."""
    return {name: head.detach().double().cpu().numpy() for name, head in heads.items()}


def _standalone(block: nn.Module, device: torch.device) -> tuple[nn.Module, dict[str, Tensor]]:
    """Copy a block in float32 without its output projection; return it and its parameters."""
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import align_module_device

    state: dict[str, Tensor] = {}
    for prefix, part in block.named_modules():
        with align_module_device(part):
            for name, value in part.named_parameters(recurse=False):
                state[f"{prefix}.{name}" if prefix else name] = value.detach().to(
                    device, torch.float32, copy=True
                )
    module = remove_hook_from_module(copy.deepcopy(block), recurse=True)
    output = find_output(module)
    if output is not None:
        setattr(module, output, nn.Identity())
        state = {key: value for key, value in state.items() if not key.startswith(f"{output}.")}
    watch(module)
    module.to_empty(device=device) if any(p.is_meta for p in module.parameters()) else module.to(device)
    return module.eval().requires_grad_(False), state


def positions_of(call: dict[str, Any]) -> int:
    """Return the positions of a call's sequences, padding included."""
    return int(_states(call).shape[1])


def _states(call: dict[str, Any]) -> Any:
    return call["kwargs"].get("hidden_states", call["args"][0] if call["args"] else None)


def sequences(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Split a call of several sequences into calls of one each."""
    from accelerate.utils import recursively_apply

    count = len(_states(call))

    def part(value: Tensor, number: int) -> Tensor:
        return value[number : number + 1] if value.ndim and len(value) == count else value

    for number in range(count):
        yield recursively_apply(part, call, number)
