"""What each attention block of a stock model reads, found by derivatives and not by names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn

from gqkva_convert.architectures.schema import Span
from gqkva_convert.derivation.stock import inputs
from gqkva_convert.errors import FamilyError

_ROLES = ("query", "key", "value")


@dataclass(frozen=True)
class FoundProjection:
    """A module that makes or reads heads.

    Attributes:
        module: Its name in the model.
        head_axis: Axis of its weight that runs over heads.
        starts: First entry along that axis of each head.
        has_bias: Whether it has a bias.
    """

    module: str
    head_axis: Literal[0, 1]
    starts: tuple[int, ...]
    has_bias: bool


@dataclass(frozen=True)
class FoundNorm:
    """A norm between a projection and scores.

    Attributes:
        module: Its name in the model.
        role: ``query`` or ``key``.
        span: As `HeadNorm` has it.
        is_centred: Whether it takes the mean away.
    """

    module: str
    role: str
    span: Span
    is_centred: bool


@dataclass(frozen=True)
class FoundBlock:
    """An attention block as its derivatives show it.

    Attributes:
        module: Its name in the model.
        head_dim: Features per head.
        projections: By role.
        planes: Pairs of features that turn with positions; the same in queries and keys.
        norms: Norms on queries and keys.
        gain: Module whose output queries read, if it is a norm, and what it adds to its stored gain.
    """

    module: str
    head_dim: int
    projections: dict[str, FoundProjection]
    planes: tuple[tuple[int, int], ...]
    norms: tuple[FoundNorm, ...]
    gain: tuple[str, float] | None


@dataclass
class _Call:
    """One call of the attention function: its inputs, and a leaf in place of its output."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


def find_blocks(model: Any) -> list[FoundBlock]:
    """Find the attention blocks of a small stock model, in order of layers.

    Raises:
        FamilyError: A block does something that a table cannot say; says what.
    """
    with _recorded(model, without_norms=True) as (calls, values):
        model(**inputs(model, far=False))
        plain = {name: _Reading(model, name, call, values) for name, call in calls.items()}
        shapes = {name: reading.projections() for name, reading in plain.items()}
        planes = {name: reading.planes(shapes[name]) for name, reading in plain.items()}
        outputs = {name: reading.output(shapes[name]) for name, reading in plain.items()}
    if not plain:
        raise FamilyError(f"{type(model).__name__} has no attention block that its inputs reach")
    with _recorded(model, without_norms=False) as (calls, values):
        model(**inputs(model, far=False))
        blocks = []
        for name, call in calls.items():
            reading = _Reading(model, name, call, values)
            projections = shapes[name] | {"output": outputs[name]}
            norms, gain = reading.norms(), reading.gain(projections["query"].module)
            _refuse_others(model, name, projections, norms)
            head_dim = call.query.shape[-1]
            blocks.append(FoundBlock(name, head_dim, projections, planes[name], norms, gain))
    return blocks


@contextmanager
def _recorded(model: Any, *, without_norms: bool) -> Iterator[tuple[dict[str, _Call], dict[str, Any]]]:
    """Record every attention call and every module's first input and output during a forward pass."""
    names = {module: name for name, module in model.named_modules()}
    calls: dict[str, _Call] = {}
    values: dict[str, Any] = {}

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        batch, heads, length, _width = query.shape
        output = torch.zeros(batch, length, heads, value.shape[-1], dtype=value.dtype, requires_grad=True)
        calls[names[module]] = _Call(query, key, value, output)
        return output, None

    def note(name: str, is_norm: bool) -> Callable[..., Any]:
        def hook(module: Any, given: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or not given or not isinstance(given[0], Tensor):
                return None
            if is_norm and without_norms:
                return given[0]
            values.setdefault(name, (given[0], output))
            return None

        return hook

    homes = {sys.modules[type(module).__module__] for module in model.modules()}
    with ExitStack() as stack:
        for home in homes:
            if hasattr(home, "eager_attention_forward"):
                stack.enter_context(patch.object(home, "eager_attention_forward", attend))
        for module, name in names.items():
            is_norm = "norm" in type(module).__name__.lower() and _inside_attention(model, name)
            hook = module.register_forward_hook(note(name, is_norm))
            stack.callback(hook.remove)
        yield calls, values


def _inside_attention(model: Any, name: str) -> bool:
    """Return whether a module's parent is made of projections, as an attention block is."""
    parent = model.get_submodule(name.rpartition(".")[0])
    return "attention" in type(parent).__name__.lower()


class _Reading:
    """One block's derivatives at the last position."""

    def __init__(self, model: Any, name: str, call: _Call, values: dict[str, Any]) -> None:
        self.model, self.name, self.call = model, name, call
        inside = (each for each in values if each.startswith(f"{name}."))
        self.values = {each: values[each] for each in inside}
        self.all_values = values

    def _linears(self) -> dict[str, Any]:
        found = {name: self.model.get_submodule(name) for name in self.values}
        return {name: module for name, module in found.items() if isinstance(module, nn.Linear)}

    def projections(self) -> dict[str, FoundProjection]:
        """Return where queries, keys and values come from."""
        found = {}
        for role in _ROLES:
            states = getattr(self.call, role)
            heads, width = states.shape[1], states.shape[-1]
            sources = {}
            for name, module in self._linears().items():
                reads = _depends(states[0, :, -1].reshape(-1), self.values[name][1])
                if reads is not None:
                    sources[name] = reads, module
            if len(sources) != 1:
                raise FamilyError(f"{self.name}: {role} heads come from {sorted(sources) or 'no linear map'}")
            ((name, (reads, module)),) = sources.items()
            starts = []
            for head in range(heads):
                rows = reads[head * width : (head + 1) * width].any(0).nonzero().flatten().tolist()
                if rows != list(range(rows[0], rows[0] + width)):
                    raise FamilyError(f"{self.name}: a {role} head's rows are not side by side in {name}")
                starts.append(rows[0])
            if len(set(starts)) != heads:
                raise FamilyError(f"{self.name}: {role} heads are repeated before attention")
            found[role] = FoundProjection(name, 0, tuple(starts), module.bias is not None)
        return found

    def planes(self, projections: dict[str, FoundProjection]) -> tuple[tuple[int, int], ...]:
        """Return the pairs of features that queries and keys turn in."""
        found = set()
        for role in ("query", "key", "value"):
            one = projections[role]
            states = getattr(self.call, role)
            width = states.shape[-1]
            reads = _depends(states[0, :, -1].reshape(-1), self.values[one.module][1])
            assert reads is not None
            for head, start in enumerate(one.starts):
                part = reads[head * width : (head + 1) * width, start : start + width]
                pairs = set()
                for feature in range(width):
                    read = part[feature].nonzero().flatten().tolist()
                    if feature not in read or len(read) > 2:
                        raise FamilyError(
                            f"{self.name}: feature {feature} of a {role} head reads rows {read}"
                        )
                    if len(read) == 2:
                        pairs.add((read[0], read[1]))
                if role == "value" and pairs:
                    raise FamilyError(f"{self.name}: values turn with positions")
                if role != "value":
                    found.add(tuple(sorted(pairs)))
        if len(found) != 1:
            raise FamilyError(f"{self.name}: heads turn in different planes")
        return found.pop()

    def output(self, projections: dict[str, FoundProjection]) -> FoundProjection:
        """Return the map that reads the heads' outputs."""
        heads, width = self.call.output.shape[2:]
        for name, module in self._linears().items():
            given = self.values[name][0]
            if not given.requires_grad or given.ndim != 3:
                continue
            if not _reads(given, self.call.output):
                continue
            reads = _depends(given[0, -1], self.call.output.flatten(2), self.call.output)
            assert reads is not None
            if not bool((reads.sum(0) == 1).all() and (reads.sum(1) == 1).all()):
                raise FamilyError(f"{self.name}: features are mixed between attention and {name}")
            columns = reads.nonzero()[:, 0][reads.nonzero()[:, 1].argsort()].view(heads, width).tolist()
            starts = [column[0] for column in columns]
            if any(column != list(range(column[0], column[0] + width)) for column in columns):
                raise FamilyError(f"{self.name}: a head's columns are not side by side in {name}")
            return FoundProjection(name, 1, tuple(starts), module.bias is not None)
        raise FamilyError(f"{self.name}: no linear map inside it reads the heads' outputs")

    def norms(self) -> tuple[FoundNorm, ...]:
        """Return the norms on queries and keys."""
        found = []
        for name, (given, output) in self.values.items():
            module = self.model.get_submodule(name)
            if "norm" not in type(module).__name__.lower() or list(module.children()):
                continue
            readers = [role for role in _ROLES if _reads(getattr(self.call, role), output)]
            if len(readers) != 1 or readers == ["value"]:
                raise FamilyError(f"{self.name}: the norm {name} acts on {readers or 'the output'}")
            weights = [parameter.shape for parameter in module.parameters()]
            states = getattr(self.call, readers[0])
            heads, width = states.shape[1], states.shape[-1]
            if not weights:
                raise FamilyError(f"{self.name}: the norm {name} stores no gain")
            span: Span
            if given.shape[-1] == width and all(shape == (width,) for shape in weights):
                span = "shared"
            elif given.shape[-1] == heads * width and all(shape == (heads * width,) for shape in weights):
                span = "all_heads"
            else:
                raise FamilyError(f"{self.name}: the norm {name} has gains {[tuple(s) for s in weights]}")
            with torch.no_grad():
                moved = module(given + 1.0)
            is_centred = bool((moved - output).abs().max() < 1e-6 * output.abs().max())
            found.append(FoundNorm(name, readers[0], span, is_centred))
        return tuple(found)

    def gain(self, query: str) -> tuple[str, float] | None:
        """Return the norm whose output queries read, and what it adds to its stored gain."""
        given = self.values[query][0]
        for name, (before, after) in self.all_values.items():
            module = self.model.get_submodule(name)
            weight = getattr(module, "weight", None)
            is_gain = isinstance(weight, nn.Parameter) and weight.shape == given.shape[-1:]
            if not is_gain or after.shape != given.shape or not torch.equal(after, given):
                continue
            none, one = (_with_gain(module, before, gain) for gain in (0.0, 1.0))
            return name, round(none / (one - none), 6)
        return None


@torch.no_grad()
def _with_gain(module: Any, given: Tensor, gain: float) -> float:
    """Return the largest output of a norm whose stored gains are all the same and whose bias is 0."""
    kept = {name: parameter.clone() for name, parameter in module.named_parameters()}
    for name, parameter in module.named_parameters():
        parameter.fill_(gain if name == "weight" else 0.0)
    largest = float(module(given).abs().max())
    for name, parameter in module.named_parameters():
        parameter.copy_(kept[name])
    return largest


def _depends(outputs: Tensor, given: Tensor, leaf: Tensor | None = None) -> Tensor | None:
    """Return which entries of the last position of ``given`` each output depends on; None if on nothing.

    Args:
        outputs: ``(outputs,)``.
        given: ``(1, positions, features)``.
        leaf: The tensor of the graph that ``given`` is a view of, if it is not one itself.
    """
    if not outputs.requires_grad:
        return None
    directions = torch.eye(len(outputs), dtype=outputs.dtype)
    read = given if leaf is None else leaf
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "is_grads_batched": True}
    found: Any = torch.autograd.grad(outputs, read, directions, **options)[0]
    if found is None:
        return None
    reads: Tensor = found.reshape(len(outputs), *given.shape)[:, 0, -1] != 0
    return reads if bool(reads.any()) else None


def _reads(states: Tensor, given: Tensor) -> bool:
    """Return whether states depend on a tensor of the graph at all."""
    if not states.requires_grad:
        return False
    (found,) = torch.autograd.grad(states.sum(), given, retain_graph=True, allow_unused=True)
    return found is not None and bool(found.any())


def _refuse_others(
    model: Any, name: str, projections: dict[str, FoundProjection], norms: tuple[FoundNorm, ...]
) -> None:
    """Refuse parameters of a block that a table has no place for: gates, sinks, scales."""
    known = {one.module for one in projections.values()} | {norm.module for norm in norms}
    block = model.get_submodule(name)
    others = sorted(
        each for each, _ in block.named_parameters() if f"{name}.{each}".rpartition(".")[0] not in known
    )
    if others:
        raise FamilyError(f"{name}: it has parameters that no table can place: {', '.join(others)}")
