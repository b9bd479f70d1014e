"""Plan files: written for a person to read and edit, read back with the line of what does not fit."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.errors import DataError, GqkvaError, LayoutError, first_line
from gqkva_convert.heads import HeadLayout
from gqkva_convert.plans.plan import BlockPlan, Plan
from gqkva_convert.source.model import SourceModel

_KEYS = {
    "variant",
    "grouping",
    "merge",
    "seed",
    "dtype",
    "architecture",
    "calibration",
    "refine",
    "blocks",
}
_BLOCK_KEYS = {"kind", "layer", "source", "target", "order", "rules"}


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
        LayoutError: It is no plan, or not one for this model; names the line.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LayoutError(f"{file}: no plan can be read there ({type(error).__name__})") from error
    repeats = 0

    def count_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeats
        found = dict(pairs)
        repeats += len(pairs) - len(found)
        return found

    try:
        data = json.loads(text, object_pairs_hook=count_repeats)
    except json.JSONDecodeError as error:
        raise LayoutError(f"{file}, line {error.lineno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise LayoutError(f"{file}, line 1: not a conversion plan: it is nested without end") from error
    except ValueError as error:  # a number of thousands of digits
        raise LayoutError(f"{file}, line 1: not a conversion plan: {first_line(error)}") from error
    lines = _Lines(text)
    if repeats:
        key, line = lines.repeated()
        raise LayoutError(f"{file}, line {line}: {key!r} stands there twice")
    if not isinstance(data, dict) or not isinstance(data.get("blocks"), list):
        raise LayoutError(f"{file}, line 1: not a conversion plan: it has no list of blocks")
    if data.get("architecture") is not None:
        raise LayoutError(
            f"{file}, line {lines.of('architecture')}: architecture is null in a plan for convert"
        )
    for key in data.keys() - _KEYS:
        raise LayoutError(f"{file}, line {lines.of(key)}: a plan has no {key!r}")
    if len(data["blocks"]) != len(model.blocks):
        raise LayoutError(
            f"{file}, line {lines.of('blocks')}: {len(data['blocks'])} blocks, "
            f"the model has {len(model.blocks)}"
        )
    for number, (entry, block) in enumerate(zip(data["blocks"], model.blocks, strict=True)):
        where = f"{file}, line {lines.of('blocks', number)}"
        if not isinstance(entry, dict):
            raise LayoutError(f"{where}: a block is an object, found {entry!r}")
        for key in entry.keys() - _BLOCK_KEYS:
            raise LayoutError(f"{file}, line {lines.of('blocks', number, key)}: a block has no {key!r}")
        try:
            found = BlockPlan.from_dict(entry)
        except KeyError as error:
            raise LayoutError(f"{where}: the block has no {error.args[0]!r}") from error
        except (GqkvaError, TypeError, AttributeError) as error:
            key = next(
                (key for key in ("target", "order", "rules", "source") if _is_at_fault(entry, key)), "kind"
            )
            said = str(error) if isinstance(error, GqkvaError) else f"no {key}: {entry.get(key)!r:.80}"
            raise LayoutError(f"{file}, line {lines.of('blocks', number, key)}: {said}") from error
        expected = {"kind": block.attention.kind, "layer": block.layer, "source": block.layout}
        wrong = next((key for key, value in expected.items() if getattr(found, key) != value), None)
        if wrong is not None:
            raise LayoutError(
                f"{file}, line {lines.of('blocks', number, wrong)}: a plan for layer {found.layer} of "
                f"{found.kind!r}, {_heads(found.source)}; the model has layer {block.layer} of "
                f"{block.attention.kind!r}, {_heads(block.layout)}, there"
            )
        in_place = tuple(range(len(found.order)))
        if block.attention.head_bias is not None and found.order != in_place:
            raise LayoutError(
                f"{file}, line {lines.of('blocks', number, 'order')}: heads of this block are bound to their "
                "index by a position bias and cannot be reordered; change the target's maps instead"
            )
        if found.target.num_attention_heads != block.layout.num_attention_heads or None in found.order:
            raise LayoutError(
                f"{file}, line {lines.of('blocks', number, 'target')}: {found.target.num_attention_heads} "
                f"attention heads, the model has {block.layout.num_attention_heads}"
            )
    for key in ("variant", "grouping", "merge", "seed", "dtype"):
        if key not in data:
            raise LayoutError(f"{file}, line 1: the plan has no {key!r}")
    if re.fullmatch(r"[A-Za-z0-9.-]+", str(data["variant"])) is None:  # it becomes part of a folder's name
        raise LayoutError(
            f"{file}, line {lines.of('variant')}: a variant is a short name such as gqa-8, "
            f"found {data['variant']!r}"
        )
    _check_calibration(data, file, lines)
    try:
        plan = Plan.from_dict(data)
    except (GqkvaError, TypeError) as error:
        keys = ("merge", "grouping", "dtype", "calibration", "refine", "seed", "variant")
        named = next((key for key in keys if key in str(error)), "")
        raise LayoutError(f"{file}, line {lines.of(named) if named in data else 1}: {error}") from error
    if plan.calibration is None and plan.looks_at_data:
        named = "refine" if plan.refine else "merge"
        raise LayoutError(
            f"{file}, line {lines.of(named)}: {named} {data[named]!r} looks at data, and calibration "
            "names none"
        )
    return plan


def _heads(layout: HeadLayout) -> str:
    return f"{layout.name} with {layout.num_attention_heads} heads of {layout.head_dim}"


def _check_calibration(data: dict[str, Any], file: Path, lines: _Lines) -> None:
    """Refuse settings of calibration data that are none.

    Raises:
        LayoutError: Names the line.
    """
    settings = data.get("calibration")
    if settings is None:
        return
    if not isinstance(settings, dict):
        raise LayoutError(
            f"{file}, line {lines.of('calibration')}: calibration is an object, found {settings!r:.80}"
        )
    known = {field.name for field in fields(DataSettings)}
    for key in settings.keys() - known:
        raise LayoutError(f"{file}, line {lines.of('calibration', key)}: calibration has no {key!r}")
    if "data" not in settings:
        raise LayoutError(f"{file}, line {lines.of('calibration')}: calibration has no 'data'")
    for key, value in settings.items():
        try:
            DataSettings(**{"data": "any", key: value})
        except DataError as error:
            raise LayoutError(f"{file}, line {lines.of('calibration', key)}: {error}") from error


def _is_at_fault(entry: dict[str, Any], key: str) -> bool:
    """Whether a block is right once a part is replaced by what it should be like."""
    from gqkva_convert.heads import HeadLayout

    try:
        source = HeadLayout.from_dict(entry["source"])
        simple = {**entry, "order": None, "target": source.to_dict()}
        simple.pop("rules", None)
        if key in ("target", "order", "source"):
            simple[key] = entry[key]
            BlockPlan.from_dict(simple)
            return False
        return key in entry
    except (GqkvaError, TypeError, KeyError, AttributeError):
        return True


class _Lines:
    """The line of every part of a JSON text; YAML, of which it is a part, has a parser that tells."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def root(self) -> Any:
        """The parsed text; YAML knows no tabs."""
        import yaml

        return yaml.compose(self.text.replace("\t", " "), Loader=yaml.SafeLoader)

    def repeated(self) -> tuple[str, int]:
        """A key that an object has twice, and the line of the second; there must be one."""
        waiting = [self.root]
        while True:
            node = waiting.pop()
            if node.id == "sequence":
                waiting += node.value
            elif node.id == "mapping":
                seen = set()
                for key, value in node.value:
                    if key.value in seen:
                        return key.value, key.start_mark.line + 1
                    seen.add(key.value)
                    waiting.append(value)

    def of(self, *path: str | int) -> int:
        """Line of the part at a path, or of the nearest around it."""
        node: Any = self.root
        line = node.start_mark.line + 1
        for part in path:
            if isinstance(part, int):
                node = node.value[part]
            else:
                found = next(((key, value) for key, value in node.value if key.value == part), None)
                if found is None:
                    return int(line)
                line, node = found[0].start_mark.line + 1, found[1]
                continue
            line = node.start_mark.line + 1
        return int(line)
