"""The proof of a table on a small random model of a configuration: what holds is a licence."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gqkva_convert.architectures import Family
from gqkva_convert.checkpoint.digest import file_sha256
from gqkva_convert.derivation.instance import Heads, Instance
from gqkva_convert.derivation.stock import build, modeling_file, stock_config
from gqkva_convert.derivation.table import small_config
from gqkva_convert.errors import FamilyError, GqkvaError
from gqkva_convert.heads import Variant
from gqkva_convert.plans.plan import BlockPlan, Plan, make_plan
from gqkva_convert.records.environment import versions
from gqkva_convert.records.family_proof import FamilyProof, without_numbers
from gqkva_convert.source.model import active_norms, attention_config, block_layout, has_bias
from gqkva_convert.source.rotary import rotary_fraction

# Relative to the largest logit; models are in float64, some of their operations in float32.
_SAME = 1e-4
_DIFFERENT = 1e-3
# Keys and values made this much larger, queries and outputs smaller: clamps on them act.
_LARGE = 30.0
# Moves three of four heads, and agrees with no rotation or reversal of them.
_ORDER = (1, 3, 2, 0)
_SEED = 0


def prove(config: Mapping[str, Any], family: Family, architecture: str | None = None) -> FamilyProof:
    """Prove a table on a configuration.

    Args:
        config: The configuration of a checkpoint.
        family: The table.
        architecture: Name of its class; None for the family's usual one.

    Raises:
        FamilyError: The table does not describe what stock transformers makes of the configuration.
    """
    full = stock_config(family.model_type, config)
    _check_numbers(config, full.to_dict(), family)
    small = stock_config(family.model_type, small_config(full))
    model = build(small, architecture or family.architecture, _SEED)
    try:
        with tempfile.TemporaryDirectory(prefix="gqkva-proof-") as scratch, torch.no_grad():
            instance = Instance(model, family, Path(scratch) / "model")
            errors, control = _errors(instance, Path(scratch))
    except FamilyError:
        raise
    except GqkvaError as error:
        raise FamilyError(f"the table does not fit a small {family.model_type}: {error}") from error
    wrong = [
        f"{test} ({error:.0e})"
        for test, error in errors.items()
        if not test.endswith("large") and not error < _SAME
    ]
    if wrong:
        raise FamilyError(
            f"the {family.model_type} table does not describe this configuration: logits of a small model "
            f"are changed by: {', '.join(wrong)}"
        )
    if not control > _DIFFERENT:
        raise FamilyError(
            f"attention hardly changes the logits of a small {family.model_type} ({control:.0e})"
        )
    layout = instance.blocks[0].layout
    return FamilyProof(
        model_type=family.model_type,
        licences={
            "merge": True,
            "reorder": True,
            "values": errors["values, large"] < _SAME,
            "keys": errors["keys, large"] < _SAME,
        },
        errors={name: float(f"{error:.1e}") for name, error in errors.items()},
        control=float(f"{control:.1e}"),
        heads=(layout.num_attention_heads, layout.num_key_heads),
        layers=len(instance.blocks),
        seed=_SEED,
        versions=versions(),
        modeling_sha256=file_sha256(modeling_file(type(model).__name__)),
        held_names=sorted({without_numbers(name) for name in model.state_dict()}),
        names=sorted({without_numbers(name) for name in instance.source.checkpoint.tensors}),
    )


def _check_numbers(config: Mapping[str, Any], full: dict[str, Any], family: Family) -> None:
    """Compare what the table reads in a configuration with what transformers does."""
    for attention in family.attention:
        ours, theirs = block_layout(dict(config), attention), block_layout(full, attention)
        if ours != theirs:
            raise FamilyError(
                f"config.json: the {family.model_type} table reads {ours.name} with heads of "
                f"{ours.head_dim}, transformers {theirs.name} with heads of {theirs.head_dim}"
            )
        if attention.rotary is not None:
            parts = [attention_config(each, attention) for each in (dict(config), full)]
            turned = [rotary_fraction(part, attention.rotary.fraction) for part in parts]
            if turned[0] != turned[1]:
                raise FamilyError(
                    f"config.json: the {family.model_type} table lets {turned[0]:.0%} of a head turn with "
                    f"positions, transformers {turned[1]:.0%}"
                )
        for projection in attention.projections:
            if has_bias(dict(config), projection.bias) != has_bias(full, projection.bias):
                raise FamilyError(
                    f"config.json: {projection.bias.key} is read in another way by transformers"
                )
        if active_norms(dict(config), attention) != active_norms(full, attention):
            raise FamilyError(
                "config.json: norms on queries and keys are read in another way by transformers"
            )


def _errors(instance: Instance, scratch: Path) -> tuple[dict[str, float], float]:
    """Return by how much each test changes the logits, and the least that a control does."""
    before = instance.logits()
    controls = [
        change(instance.logits(_turn_values_alone, only=block), before)
        for block in range(len(instance.heads))
    ]
    errors = {"load": change(instance.logits_of(instance.source), before)}
    errors["reorder"] = change(_reordered(instance, scratch), before)
    for number in (2, 1):
        errors[f"merge to {number}"] = _merge_error(instance, number, scratch)
    for name, edit in (("values", _turn_values), ("values, scaled", _scale_values), ("keys", _turn_keys)):
        errors[name] = change(instance.logits(edit), before)
    if any(heads.norms for heads in instance.heads):
        equal = instance.logits(_equal_gains)
        errors["keys, equal gains"] = change(instance.logits(_equal_gains, _rotate_keys), equal)
    large = instance.logits(_enlarge)
    for name, edit in (("values, large", _turn_values), ("keys, large", _turn_keys)):
        errors[name] = change(instance.logits(_enlarge, edit), large)
    return errors, min(controls)


def change(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of logits, relative to the largest one; infinite for other shapes."""
    if one.shape != other.shape or not bool(torch.isfinite(one).all()):
        return float("inf")
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))


def _reordered(instance: Instance, scratch: Path) -> Tensor:
    """Return the logits after our conversion reordered the heads."""
    blocks = []
    for block in instance.blocks:
        size = block.layout.num_attention_heads // block.layout.num_key_heads
        order = tuple(head * size + (reader + head + 1) % size for head in _ORDER for reader in range(size))
        blocks.append(BlockPlan(*block.place, block.layout, block.layout, order))
    plan = Plan("reorder", "neighbour", "mean", 0, None, tuple(blocks))
    return instance.logits_of(instance.converted(instance.source, plan, scratch / "reordered"))


def _merge_error(instance: Instance, number: int, scratch: Path) -> float:
    """Return how merging equal heads changes logits: merged heads expanded again, and merged once more."""
    plan = make_plan(instance.source, Variant(None, number), merge="mean")
    merged = instance.converted(instance.source, plan, scratch / f"merged-{number}")
    back = tuple(BlockPlan.reversed(block) for block in plan.blocks)
    expanded = instance.converted(
        merged, Plan("back", "neighbour", "mean", 0, None, back), scratch / f"expanded-{number}"
    )
    return change(instance.logits_of(merged), instance.logits_of(expanded))


def _generator(heads: Heads) -> torch.Generator:
    return torch.Generator().manual_seed(heads.block.place[1] + 1)


def _value_maps(heads: Heads, *, is_diagonal: bool) -> Tensor:
    generator, width = _generator(heads), heads.block.layout.head_dim
    if is_diagonal:
        return torch.diag_embed(
            0.5 + torch.rand(heads.stored, width, generator=generator, dtype=torch.float64)
        )
    noise = torch.randn(heads.stored, width, width, generator=generator, dtype=torch.float64)
    return torch.eye(width, dtype=torch.float64) + 0.2 * noise


def _change_values(heads: Heads, maps: Tensor) -> None:
    heads.change("value", maps)
    heads.change("output", torch.linalg.inv(maps).mT.repeat_interleave(heads.readers, 0))


def _turn_values(heads: Heads) -> None:
    _change_values(heads, _value_maps(heads, is_diagonal=False))


def _scale_values(heads: Heads) -> None:
    _change_values(heads, _value_maps(heads, is_diagonal=True))


def _turn_values_alone(heads: Heads) -> None:
    """Change what a block attends to without telling its readers: the control."""
    heads.change("value", _value_maps(heads, is_diagonal=False))


def _key_maps(heads: Heads, kind: str) -> Tensor:
    """Return a map of each key head that rotary positions pass on.

    Args:
        heads: The block.
        kind: ``complex``: a complex factor for each plane, and any map of features that do not turn;
            ``unit``: the same of length 1; ``half turns``: -1 or 1 for each plane and each other feature.
    """
    generator, width, planes = _generator(heads), heads.block.layout.head_dim, heads.block.planes
    first, second = (
        torch.tensor(planes.first, dtype=torch.long),
        torch.tensor(planes.second, dtype=torch.long),
    )
    resting = torch.tensor(sorted({*range(width)} - {*planes.first, *planes.second}), dtype=torch.long)
    size = heads.stored, len(first)
    angle = 6.28 * torch.rand(size, generator=generator, dtype=torch.float64)
    length = 0.5 + torch.rand(size, generator=generator, dtype=torch.float64)
    if kind != "complex":
        length.fill_(1)
    if kind == "half turns":
        angle = torch.pi * (angle > 3.14)
    maps = torch.zeros(heads.stored, width, width, dtype=torch.float64)
    maps[:, first, first] = maps[:, second, second] = length * angle.cos()
    maps[:, first, second] = -length * angle.sin()
    maps[:, second, first] = length * angle.sin()
    noise = torch.randn(heads.stored, len(resting), len(resting), generator=generator, dtype=torch.float64)
    mixed = torch.eye(len(resting), dtype=torch.float64) + 0.2 * noise
    if kind == "unit":
        mixed = torch.linalg.qr(noise)[0]
    if kind == "half turns":
        mixed = torch.diag_embed(torch.sign(noise.diagonal(dim1=1, dim2=2)))
    maps[:, resting[:, None], resting] = mixed
    return maps


def _change_keys(heads: Heads, kind: str) -> None:
    maps = _key_maps(heads, kind)
    heads.change("key", maps)
    heads.change("query", torch.linalg.inv(maps).mT.repeat_interleave(heads.readers, 0))


def _turn_keys(heads: Heads) -> None:
    """Change keys as merging may: freely without a norm on them, by half turns with one."""
    kinds = {"none": "complex", "plain": "half turns"}
    if heads.block.norm in kinds:
        _change_keys(heads, kinds[heads.block.norm])


def _rotate_keys(heads: Heads) -> None:
    _change_keys(heads, "unit")


def _equal_gains(heads: Heads) -> None:
    for gain in heads.norms:
        gain.fill_(0.7)


def _enlarge(heads: Heads) -> None:
    """Make keys and values large, queries and outputs as much smaller."""
    one = torch.eye(heads.block.layout.head_dim, dtype=torch.float64)
    for role, factor in (("query", 1 / _LARGE), ("key", _LARGE), ("value", _LARGE), ("output", 1 / _LARGE)):
        count = heads.stored if role in ("key", "value") else heads.block.layout.num_attention_heads
        heads.change(role, factor * one.expand(count, -1, -1))
