"""Refining merged heads on calibration data, and choosing between merge rules on held-out data, by block.

Every block is fitted to the original block's output for the original inputs, so that blocks are independent
of each other. A fit is kept only if its error on held-out inputs is no larger than before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from gqkva_convert.refinement.block_data import BlockData
    from gqkva_convert.refinement.block_network import BlockNetwork, TensorHeads
    from gqkva_convert.refinement.layerwise import FitSettings

# Ridges of the least squares, relative to the mean square of the inputs; the best on held-out data is kept.
_RIDGES = (1e-6, 1e-4, 1e-2)


def refine_block(
    heads: TensorHeads, learned: BlockData, held: BlockData, steps: Sequence[str], settings: FitSettings
) -> tuple[TensorHeads, dict[str, float]]:
    """Improve a block's merged heads.

    Args:
        heads: Merged heads.
        learned: Data to fit.
        held: Data to compare on.
        steps: Names of `REFINEMENTS`.
        settings: Settings of the layer-wise fit.

    Returns:
        The heads, and the held-out error before and after each step.
    """
    from gqkva_convert.refinement.layerwise import fit_layer

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
    """Fit the output projection to the original block's output: ridge least squares in float64.

    The ridge draws towards the projection that the fit starts with.
    """
    import torch

    output = learned.network.output_weight(heads)
    size, width = output.shape
    squares = torch.zeros(size, size, dtype=torch.float64, device=output.device)
    products = torch.zeros(size, width, dtype=torch.float64, device=output.device)
    with torch.no_grad():
        for numbers in learned.parts():
            attended = learned.network.attended(heads, learned.joined(numbers))
            missing = (learned.joined_answers(numbers) - attended @ output).double()
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
    head_dim = network.plan.source.head_dim
    changed = dict(heads)
    for head, place in enumerate(network.places):
        changed["output", place] = output[head * head_dim : (head + 1) * head_dim]
    return changed


def group_errors(heads: TensorHeads, original: TensorHeads, held: BlockData) -> list[float]:
    """Return the held-out error of each shared key head's attention heads, in their part of the output.

    Args:
        heads: Merged heads.
        original: The block's own output blocks by place (``("output", place)``).
        held: Held-out data.
    """
    import torch

    network = held.network
    head_dim, target = network.plan.source.head_dim, network.plan.target
    errors = [0.0] * target.num_key_heads
    with torch.no_grad():
        for numbers in held.parts():
            call = held.joined(numbers)
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
    """Return, for each shared key head, the rule with the least error on held-out data.

    Args:
        candidates: Merged heads by rule.
        original: The block's own output blocks by place.
        held: Held-out data.
        apart: Whether groups can be chosen one by one; otherwise one rule is chosen for the block.
    """
    if apart:
        errors = {rule: group_errors(heads, original, held) for rule, heads in candidates.items()}
        groups = range(held.network.plan.target.num_key_heads)
        return tuple(min(errors, key=lambda rule: errors[rule][group]) for group in groups)
    best = min(candidates, key=lambda rule: held.error(candidates[rule]))
    return (best,) * held.network.plan.target.num_key_heads
