"""Refining merged heads on calibration data, and choosing between merge rules on held-out data, by block.

Every block is fitted to what the original block gave for the original inputs, so that blocks are independent
of each other. Nothing that is worse on held-out inputs than what it began with is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gqkva_convert.conversion.plan import REFINEMENTS
from gqkva_convert.errors import LayoutError

if TYPE_CHECKING:
    from torch import Tensor

    from gqkva_convert.conversion.refinement.block_network import BlockNetwork, TensorHeads

# Ridges of the least squares, relative to the mean square of the inputs; the best on held-out data is kept.
_RIDGES = (1e-6, 1e-4, 1e-2)


def parse_refinements(text: str | None) -> tuple[str, ...]:
    """Names separated by commas, in the order they run.

    Raises:
        LayoutError: There is no such refinement.
    """
    asked = {name.strip() for name in (text or "").split(",") if name.strip() and name.strip() != "none"}
    if not asked <= set(REFINEMENTS):
        raise LayoutError(
            f"no refinement {', '.join(sorted(asked - set(REFINEMENTS)))}; choose of {', '.join(REFINEMENTS)}"
        )
    return tuple(name for name in REFINEMENTS if name in asked)


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast the layer-wise fit runs.

    Attributes:
        steps: Steps of Adam.
        positions: Least number of positions in a step.
        rate: Step size relative to the root mean square of each projection's weights; falls to 0 linearly.
        check_every: Steps between looks at the held-out inputs.
        seed: Seed of the order of the data.
    """

    steps: int = 1000
    positions: int = 1024
    rate: float = 0.04
    check_every: int = 25
    seed: int = 0


class BlockData:
    """A block's recorded calls, and what the original block answers to them.

    Args:
        network: The block.
        calls: One call a sequence.
        output: Its original output projection, ``(heads * head_dim, hidden)``, heads in the source's order.
    """

    def __init__(self, network: BlockNetwork, calls: Sequence[dict[str, Any]], output: Tensor) -> None:
        import torch

        self.network = network
        self.calls = list(calls)
        with torch.no_grad():
            self.answers = [network.attended(None, call) @ output for call in self.calls]
        self.energy = sum(float(answer.square().sum()) for answer in self.answers)

    def error(self, heads: TensorHeads) -> float:
        """Squared error of the block's output relative to its energy."""
        import torch

        output = self.network.output_weight(heads)
        with torch.no_grad():
            total = sum(
                float((self.network.attended(heads, call) @ output - answer).square().sum())
                for call, answer in zip(self.calls, self.answers, strict=True)
            )
        return total / max(self.energy, 1e-30)


def refine_block(
    heads: TensorHeads, learned: BlockData, held: BlockData, steps: Sequence[str], settings: FitSettings
) -> tuple[TensorHeads, dict[str, float]]:
    """Improve a block's merged heads.

    Args:
        heads: Merged heads.
        learned: Data to fit.
        held: Data to compare on.
        steps: Names of `REFINEMENTS`.
        settings: Of the layer-wise fit.

    Returns:
        The heads, and the held-out error before and after each step.
    """
    errors = {"merged": held.error(heads)}
    last = errors["merged"]
    for name in steps:
        found = (
            fit_output(heads, learned, held)
            if name == "output"
            else fit_layer(heads, learned, held, settings)
        )
        error = held.error(found)
        if error <= last:
            heads, last = found, error
        errors[name] = last
    return heads, errors


def fit_output(heads: TensorHeads, learned: BlockData, held: BlockData) -> TensorHeads:
    """The output projection that brings merged heads closest to the original output: ridge least squares.

    The ridge draws towards the projection it began with, in float64.
    """
    import torch

    output = learned.network.output_weight(heads)
    size, width = output.shape
    squares = torch.zeros(size, size, dtype=torch.float64, device=output.device)
    products = torch.zeros(size, width, dtype=torch.float64, device=output.device)
    with torch.no_grad():
        for call, answer in zip(learned.calls, learned.answers, strict=True):
            attended = learned.network.attended(heads, call)
            missing = (answer - attended @ output).double()
            attended = attended.double()
            squares += attended.T @ attended
            products += attended.T @ missing
    unit = float(squares.diagonal().mean())
    if not unit > 0:
        return heads
    best, best_error = heads, held.error(heads)
    for ridge in _RIDGES:
        system = squares + ridge * unit * torch.eye(size, dtype=torch.float64, device=output.device)
        change = torch.linalg.solve(system, products)
        tried = _with_output(heads, output + change.float(), learned.network)
        error = held.error(tried)
        if error < best_error:
            best, best_error = tried, error
    return best


def _with_output(heads: TensorHeads, output: Tensor, network: BlockNetwork) -> TensorHeads:
    head_dim = network.joint.plan.source.head_dim
    changed = dict(heads)
    for head, place in enumerate(network.places):
        changed["output", place] = output[head * head_dim : (head + 1) * head_dim]
    return changed


def fit_layer(heads: TensorHeads, learned: BlockData, held: BlockData, settings: FitSettings) -> TensorHeads:
    """A short fit of all projections to the original block's output (LoLCATs, arXiv 2410.10254, section 3.2).

    Adam with a linearly falling rate; the heads of the step with the least held-out error are kept, those it
    began with included.
    """
    import torch

    generator = torch.Generator().manual_seed(settings.seed)
    fitted = {name: head.clone().requires_grad_(True) for name, head in heads.items()}
    groups = []
    for role in ("query", "key", "value", "output"):
        members = [head for (its_role, _), head in fitted.items() if its_role == role]
        root = torch.stack([head.detach().square().mean() for head in members]).mean().sqrt()
        groups.append({"params": members, "lr": settings.rate * float(root.clamp(min=1e-8))})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98), eps=1e-12)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    network = learned.network
    sizes = [len(answer) for answer in learned.answers]
    scale = learned.energy / max(sum(sizes), 1)
    best, best_error = heads, held.error(heads)
    order: list[int] = []
    for step in range(1, settings.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        chosen: list[int] = []
        if not order:
            order = torch.randperm(len(sizes), generator=generator).tolist()
        while order and sum(sizes[number] for number in chosen) < settings.positions:
            chosen.append(order.pop())
        count = sum(sizes[number] for number in chosen)
        output = network.output_weight(fitted)
        for call, answer in _joined(learned, chosen):
            loss = (network.attended(fitted, call) @ output - answer).square().sum() / (count * scale)
            loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % settings.check_every == 0 or step == settings.steps:
            current = {name: head.detach().clone() for name, head in fitted.items()}
            error = held.error(current)
            if error < best_error:
                best, best_error = current, error
    return best


def _joined(data: BlockData, chosen: Sequence[int]) -> list[tuple[dict[str, Any], Tensor]]:
    """Calls of equal shape side by side in one; others one by one."""
    import torch

    parts: dict[Any, list[int]] = {}
    for number in chosen:
        parts.setdefault(_shape(data.calls[number]), []).append(number)
    joined = []
    for numbers in parts.values():
        calls = [data.calls[number] for number in numbers]
        answer = torch.cat([data.answers[number] for number in numbers])
        joined.append((_side_by_side(calls), answer))
    return joined


def _shape(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return tuple((name, _shape(part)) for name, part in value.items())
    return tuple(_shape(part) for part in value) if isinstance(value, (tuple, list)) else value


def _side_by_side(values: Sequence[Any]) -> Any:
    """Values of several sequences as one batch; what is the same for all, or not of one sequence, stays."""
    import torch

    first = values[0]
    if isinstance(first, torch.Tensor):
        is_shared = len(values) > 1 and all(value.data_ptr() == first.data_ptr() for value in values)
        return first if is_shared or len(first) != 1 else torch.cat(list(values))
    if isinstance(first, dict):
        return {name: _side_by_side([value[name] for value in values]) for name in first}
    if isinstance(first, (tuple, list)):
        return tuple(_side_by_side(part) for part in zip(*values, strict=True))
    return first


def group_errors(heads: TensorHeads, original: TensorHeads, held: BlockData) -> list[float]:
    """Held-out error of each shared key head's attention heads, in what they add to the output.

    Args:
        heads: Merged heads.
        original: The block's own output blocks by place (``("output", place)``).
        held: Held-out data.
    """
    import torch

    network = held.network
    head_dim, target = network.joint.plan.source.head_dim, network.joint.plan.target
    errors = [0.0] * target.num_key_heads
    with torch.no_grad():
        for call in held.calls:
            ours, theirs = network.attended(heads, call), network.attended(None, call)
            for group in range(target.num_key_heads):
                missing: Any = 0.0
                for head, place in enumerate(network.places):
                    if target.key[place] == group:
                        span = slice(head * head_dim, (head + 1) * head_dim)
                        missing = missing + ours[:, span] @ heads["output", place]
                        missing = missing - theirs[:, span] @ original["output", place]
                errors[group] += float(missing.square().sum())
    return errors


def choose_rules(
    candidates: dict[str, TensorHeads], original: TensorHeads, held: BlockData, apart: bool
) -> tuple[str, ...]:
    """For each shared key head, the rule whose heads err least on held-out data.

    Args:
        candidates: Merged heads by rule.
        original: The block's own output blocks by place.
        held: Held-out data.
        apart: Whether groups can be chosen one by one; otherwise one rule is chosen for the block.
    """
    if apart:
        errors = {rule: group_errors(heads, original, held) for rule, heads in candidates.items()}
        groups = range(held.network.joint.plan.target.num_key_heads)
        return tuple(min(errors, key=lambda rule: errors[rule][group]) for group in groups)
    best = min(candidates, key=lambda rule: held.error(candidates[rule]))
    return (best,) * held.network.joint.plan.target.num_key_heads
