"""One self-contained modelling file for a family, made of this package's own source."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gqkva_convert._version import __version__
from gqkva_convert.modeling.families import GroupedFamily, grouped_name

_PACKAGE = Path(__file__).parents[1]
_ROOTS = (
    ("gqkva_convert.modeling.models", "define_config"),
    ("gqkva_convert.modeling.models", "define_models"),
    ("gqkva_convert.modeling.models", "register_models"),
)
BLOCK_CLASSES = {
    "dinov2": ("gqkva_convert.modeling.dinov2", "GroupedDinov2Attention"),
    "olmo2": ("gqkva_convert.modeling.olmo2", "GroupedOlmo2Attention"),
    "opt": ("gqkva_convert.modeling.opt", "GroupedOPTAttention"),
    "gpt_neox": ("gqkva_convert.modeling.gpt_neox", "GroupedGPTNeoXAttention"),
}

_HEADER = '''"""{model_type} models with grouped attention, for ``trust_remote_code=True``.

Written by gqkva {version} (https://pypi.org/project/gqkva-convert), from its own source; needs torch and
transformers only. ``config.json`` names the stored heads of each attention block under ``attention_layouts``.
"""
'''
_FOOTER = """
FAMILY = {family!r}


def modeling_text(family):
    \"\"\"This file, which a saved model carries along.\"\"\"
    return Path(__file__).read_text()


{config} = define_config(FAMILY, __name__)
MODELS = define_models(FAMILY, __name__, {config}, {block_class})
globals().update(MODELS)
register_models(FAMILY, {config}, MODELS)
"""


@dataclass(frozen=True)
class _Module:
    """A source file taken apart.

    Attributes:
        definitions: Source of every top-level statement that binds a name, in order.
        names: Which definition binds a name.
        uses: Names that each definition uses.
        ours: Names imported from this package: their module and name there.
        others: Names imported from elsewhere, and the statement that does it.
        effects: Definitions that bind no name but do something, such as a registration.
    """

    definitions: list[str]
    names: dict[str, int]
    uses: list[set[str]]
    ours: dict[str, tuple[str, str]]
    others: dict[str, str]
    effects: list[int]


def modeling_text(family: GroupedFamily) -> str:
    """Return the modelling file of a family: all that its classes need of this package, without importing it.

    Args:
        family: The family.

    Returns:
        Python source.
    """
    block_class = BLOCK_CLASSES.get(family.model_type)
    roots = (*_ROOTS, block_class) if block_class else _ROOTS
    needed: dict[str, set[int]] = {}
    order: list[str] = []
    imports: set[str] = {"from pathlib import Path"}
    for module, name in roots:
        _collect(module, name, needed, order, imports)
    body = [_module(module).definitions[place] for module in order for place in sorted(needed[module])]
    header = _HEADER.format(model_type=family.model_type, version=__version__)
    names = {"config": grouped_name(family.config), "block_class": block_class[1] if block_class else None}
    footer = _FOOTER.format(family=family, **names)
    lines = ["from __future__ import annotations", "", *sorted(imports)]
    return f"{header}\n" + "\n".join(lines) + "\n\n\n" + "\n\n\n".join(body) + "\n\n" + footer


def _collect(
    module: str, name: str, needed: dict[str, set[int]], order: list[str], imports: set[str]
) -> None:
    """Record a definition and everything that it uses, dependencies first."""
    parsed = _module(module)
    places = needed.setdefault(module, set())
    wanted = [parsed.names[name]]
    if not places:
        wanted += parsed.effects
    for place in wanted:
        if place in places:
            continue
        places.add(place)
        for used in sorted(parsed.uses[place]):
            if used in parsed.names and parsed.names[used] not in places:
                _collect(module, used, needed, order, imports)
            elif used in parsed.ours:
                _collect(*parsed.ours[used], needed, order, imports)
            elif used in parsed.others:
                imports.add(parsed.others[used])
    if module not in order:
        order.append(module)


@cache
def _module(name: str) -> _Module:
    path = _PACKAGE.joinpath(*name.split(".")[1:])
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    lines = source.splitlines()
    parsed = _Module([], {}, [], {}, {}, [])
    comments_from = 0
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            _note_import(node, parsed)
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            place = len(parsed.definitions)
            bound = _bound_names(node)
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
            while first > comments_from and lines[first - 1].startswith("#"):
                first -= 1
            parsed.definitions.append("\n".join(lines[first : node.end_lineno]))
            parsed.names.update(dict.fromkeys(bound, place))
            parsed.uses.append(
                {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - set(bound)
            )
            if not bound:
                parsed.effects.append(place)
        comments_from = node.end_lineno or 0
    return parsed


def _note_import(node: ast.Import | ast.ImportFrom, parsed: _Module) -> None:
    for alias in node.names:
        bound = alias.asname or alias.name.partition(".")[0]
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.startswith("gqkva_convert"):
                parsed.ours[bound] = (node.module, alias.name)
            else:
                rename = f" as {alias.asname}" if alias.asname else ""
                parsed.others[bound] = f"from {node.module} import {alias.name}{rename}"
        else:
            parsed.others[bound] = f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")


def _bound_names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
