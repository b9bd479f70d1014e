"""Plan files: written for a person to read and edit, read back with the line of what does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.yamlfile import read_text
from gqkva_convert.errors import GqkvaError, LayoutError, UsageError, first_line, place_of, placed
from gqkva_convert.heads import HeadLayout
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.source.model import Block, SourceModel

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')


def write_plan(plan: Plan, file: Path) -> None:
    """Write a plan, one line for each list of heads."""
    data = plan.to_dict()
    blocks = data.pop("blocks")
    head = json.dumps(data, indent=2)[1:-2].rstrip()
    lines = ",\n".join("    " + _block_text(block) for block in blocks)
    file.write_text("{" + head + ',\n  "blocks": [\n' + lines + "\n  ]\n}\n")


def _block_text(block: dict[str, Any]) -> str:
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in block.items()]
    return "{" + ",\n     ".join(parts) + "}"


def read_plan(file: Path, model: SourceModel) -> Plan:
    """Read a plan for a model.

    Raises:
        UsageError: It is no plan; names the line.
        LayoutError: Its heads cannot be, or are not those of this model; names the line.
    """
    text = read_text(file, UsageError)
    data, lines = _parsed(text, file), _Lines(text)
    if not isinstance(data, dict) or not isinstance(data.get("blocks"), list):
        raise UsageError(f"{file}, line 1: not a conversion plan: it has no list of blocks")
    try:
        plan = Plan.from_dict(data)
        _require_convertible(plan)
        _require_fit(plan, model)
    except GqkvaError as error:
        raise type(error)(f"{file}, line {lines.of(*place_of(error))}: {error}") from error
    return plan


def _parsed(text: str, file: Path) -> Any:
    """Parse JSON; refuse an object that names a key twice."""
    repeats = 0

    def count_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeats
        found = dict(pairs)
        repeats += len(pairs) - len(found)
        return found

    try:
        data = json.loads(text, object_pairs_hook=count_repeats)
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}, line {error.lineno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise UsageError(f"{file}, line 1: not a conversion plan: it is nested without end") from error
    except ValueError as error:  # a number of thousands of digits
        raise UsageError(f"{file}, line 1: not a conversion plan: {first_line(error)}") from error
    if repeats:
        key, line = _Lines(text).repeated()
        raise UsageError(f"{file}, line {line}: {key!r} stands there twice")
    return data


def _require_convertible(plan: Plan) -> None:
    """Refuse a plan that `convert` cannot carry out by itself."""
    if plan.architecture is not None:
        raise placed(UsageError("architecture is null in a plan for convert"), "architecture")
    if re.fullmatch(r"[A-Za-z0-9.-]+", plan.variant) is None:  # it becomes part of a folder's name
        said = f"a variant is a short name such as gqa-8, found {plan.variant!r}"
        raise placed(UsageError(said), "variant")
    if plan.calibration is None and plan.looks_at_data:
        named, value = ("refine", list(plan.refine)) if plan.refine else ("merge", plan.merge)
        raise placed(UsageError(f"{named} {value!r} looks at data, and calibration names none"), named)


def _require_fit(plan: Plan, model: SourceModel) -> None:
    """Refuse a plan for another model."""
    if len(plan.blocks) != len(model.blocks):
        raise placed(LayoutError(f"{len(plan.blocks)} blocks, the model has {len(model.blocks)}"), "blocks")
    for number, (planned, block) in enumerate(zip(plan.blocks, model.blocks, strict=True)):
        for part, said in _misfits(planned, block):
            raise placed(LayoutError(said), "blocks", number, part)


def _misfits(planned: BlockPlan, block: Block) -> Iterator[tuple[str, str]]:
    """Give each part of a block's plan that does not fit the block, and why."""
    expected = {"kind": block.attention.kind, "layer": block.layer, "source": block.layout}
    for part, value in expected.items():
        if getattr(planned, part) != value:
            found = _described(planned.kind, planned.layer, planned.source)
            there = _described(block.attention.kind, block.layer, block.layout)
            yield part, f"a plan for {found}; the model has {there}, there"
    if block.attention.head_bias is not None and planned.order != tuple(range(len(planned.order))):
        said = "heads of this block are bound to their index by a position bias and cannot be reordered"
        yield "order", f"{said}; change the target's maps instead"
    heads = block.layout.num_attention_heads
    if planned.target.num_attention_heads != heads or None in planned.order:
        yield "target", f"{planned.target.num_attention_heads} attention heads, the model has {heads}"


def _described(kind: str, layer: int, layout: HeadLayout) -> str:
    heads = f"{layout.name} with {layout.num_attention_heads} heads of {layout.head_dim}"
    return f"layer {layer} of {kind!r}, {heads}"


class _Lines:
    """The line of every part of a JSON text that has been parsed, read in one pass."""

    def __init__(self, text: str) -> None:
        self.text = text

    def repeated(self) -> tuple[str, int]:
        """Return the first key that an object has twice, and the line of its second place."""
        seen = set()
        for place, line in self._entries():
            if tuple(place) in seen:
                return str(place[-1]), line
            seen.add(tuple(place))
        raise AssertionError

    def of(self, *path: str | int) -> int:
        """Return the line of the part at a path, or of the nearest part around it."""
        nearest, depth = 1 + self.text.count("\n", 0, len(self.text) - len(self.text.lstrip())), 0
        for place, line in self._entries():
            if len(place) == depth + 1 <= len(path) and place == [*path[: depth + 1]]:
                nearest, depth = line, depth + 1
        return nearest

    def _entries(self) -> Iterator[tuple[list[str | int], int]]:
        """Give the place and line of each key of an object and each entry of a list, in order."""
        place: list[Any] = []
        is_object: list[bool] = []
        line, end, before = 1, 0, ""
        for token in _TOKEN.finditer(self.text):
            line += self.text.count("\n", end, token.start())
            end, mark = token.start(), token[0]
            if before in ("{", "[", ",") and mark not in ("}", "]"):
                place[-1] = json.loads(mark) if is_object[-1] else place[-1] + 1
                yield place, line
            if mark in ("{", "["):
                place.append(-1)
                is_object.append(mark == "{")
            elif mark in ("}", "]"):
                place.pop()
                is_object.pop()
            before = mark
