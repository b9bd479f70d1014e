"""Write the generated pages: from help texts, tables, docstrings and the classes that check settings.

python docs/generate.py            # write them
python docs/generate.py --check    # fail if one is out of date
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from layers import ORDER

import gqkva_convert
from gqkva_convert import COMMANDS, errors
from gqkva_convert.architectures import FAMILIES, NATIVE, NESTED, REFUSED, Attention, Family
from gqkva_convert.cli import app
from gqkva_convert.conversion.export import added_heads_change
from gqkva_convert.data.shapes import SHAPES
from gqkva_convert.options import options_of
from gqkva_convert.recipes.commands import RESERVED
from gqkva_convert.recipes.facts import FACTS
from gqkva_convert.recipes.schema import Assumed, Gpus, Recipe, Repeated, Step
from gqkva_convert.uptraining.settings import TrainingSettings

DOCS = Path(__file__).parent


def cli_page() -> str:
    """Return the page of commands: the help of each, and the Python function behind it."""
    os.environ.update(TERMINAL_WIDTH="100", COLUMNS="100", NO_COLOR="1", TERM="dumb")
    parts = ["# Commands\n", "Generated from `--help` by `python docs/generate.py`.\n"]
    for command in COMMANDS:
        result = CliRunner().invoke(app, [command, "--help"], prog_name="gqkva", terminal_width=100)
        text = "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())
        parts.append(f"## gqkva {command}\n\nIn Python: `gqkva_convert.{command}`.\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def families_page() -> str:
    """Return the page of families, from their records."""
    lines = [
        "# Model families\n",
        "Generated from `gqkva_convert/architectures` by `python docs/generate.py`.",
        "Stock: GQA and MQA are written as stock checkpoints, since the architecture in transformers reads",
        "`num_key_value_heads`. Grouped: every variant is a [grouped model](grouped-models.md), as the other",
        "variants of the stock families are.\n",
        "| family | attention | q, k, v stored | positions | query/key norm | head order | convert |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in sorted(FAMILIES):
        family = FAMILIES[name]
        lines += [_family_row(family, attention) for attention in family.attention]
    lines += [
        "",
        "Some model classes contain only part of their family's attention blocks although their",
        "configuration describes all of them. Only the blocks that are present are converted:",
        "",
    ]
    for name in sorted(FAMILIES):
        for part, kinds in FAMILIES[name].parts.items():
            lines.append(f"- `{part}`: {' and '.join(kinds)}")
    return "\n".join([*lines, *_loading_lines(), *_generated_lines()]) + "\n"


def _generated_lines() -> list[str]:
    """Return the section on generated tables, with what each allows, and on types that have none."""
    lines = [
        "",
        "## Generated tables",
        "",
        "These decoders have tables made from transformers' own classes by `make families`. Before `convert`",
        "or `plan` uses one, it is proved: a small random model is built from the checkpoint's own",
        "`config.json` (sizes alone change) and converted. Loaded by the stock class, it must give the same",
        "logits after heads were reordered, equal heads merged, and value and key heads mixed by matrices",
        "that their readers undo; each layer alone must count. A table that fails, or a checkpoint whose",
        "tensors have other names, is refused. If mixing changes logits where activations are large, as with",
        "`clip_qkv`, heads are merged by `mean`, which is said, and rules that mix features are refused. It",
        "takes about a second, is kept in the report as `family_proof`, and is cached by configuration,",
        "versions and modelling file.",
        "",
        "MQA and GQA are stock checkpoints; other variants, unequal groups and GGUF files are refused. Norms",
        "on queries and keys leave the closed form half turns.",
        "",
        "| family | q, k, v stored | positions | query/key norm |",
        "| --- | --- | --- | --- |",
    ]
    for name in sorted(NATIVE):
        cells = _family_row(NATIVE[name], NATIVE[name].attention[0]).split(" | ")
        lines.append(f"| {name} | {' | '.join(cells[2:5])} |")
    lines += [
        "",
        "In these the text model (`text_config`) is converted, of the type that the configuration names: one",
        "of the above, or one of the stock families. Vision and audio towers are copied.",
        "",
        "| family | text model, where none is named |",
        "| --- | --- |",
    ]
    lines += [f"| {name} | {NESTED[name].text} |" for name in sorted(NESTED)]
    lines += [
        "",
        "Other models of transformers that generate text have no table:",
        "",
        "| why | model types |",
        "| --- | --- |",
    ]
    for reason in sorted(set(REFUSED.values())):
        names = sorted(name for name in REFUSED if REFUSED[name] == reason)
        lines.append(f"| {reason.replace('|', '/')} | {', '.join(names)} |")
    return lines


def _loading_lines() -> list[str]:
    """Return the section on what loads which result, from tables and tests."""
    lines = [
        "",
        "## What loads where",
        "",
        "- *MQA, GQA*: `stock` if the conversion is a stock checkpoint of transformers. Otherwise, and for",
        "  GKVA, MKVA, GQKVA and unequal groups in all families, the result is a grouped model. transformers",
        "  loads it with `trust_remote_code=True`, or without if `gqkva_convert` is imported.",
        "- *exported*: `yes` if [`gqkva export`](grouped-models.md#exporting) makes a stock checkpoint of it",
        "  that computes the same; *its KV cache* is that of the export. Tested in every family",
        "  (`tests/conversion/test_export.py`; phi with `qk_layernorm`).",
        "- *compared in*: other programs in which a test compares an export's logits with the grouped",
        "  model's. `tests/runtimes` tests llama.cpp, through `--runtime gguf` and within the limits of",
        "  [serving.md](serving.md); `tests/conversion/test_runtimes.py` tests the others. More programs:",
        "  [serve elsewhere](guides/serve-elsewhere.md).",
        "",
        "| family | MQA, GQA | MKVA, GKVA, GQKVA exported | unequal exported | its KV cache | compared in |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in sorted(FAMILIES):
        family = FAMILIES[name]
        stock = "stock" if family.is_native else "grouped"
        has_cache = any(attention.cache != "none" for attention in family.attention)
        cache = "keeps its heads" if family.is_native else "as the original model's"
        llama_cpp = () if family.gguf is None else ("llama.cpp",)
        runtimes = ", ".join((*llama_cpp, *family.compared_in)) or "-"
        lines.append(
            f"| {name} | {stock} | yes | {_unequal(family)} | {cache if has_cache else 'none'} | {runtimes} |"
        )
    lines += [
        "",
        "Where layers keep different numbers of key/value heads, an export gives all of them the largest",
        "number. `--architecture deci` keeps each layer's, for Llama and for Mistral without a window; only",
        "llama.cpp loads the result.",
    ]
    return lines


def _unequal(family: Family) -> str:
    """Return whether a stock model of a family can get added heads, with the reason if it cannot."""
    if not family.is_native:
        return "yes"
    (attention,) = family.attention
    refusals = {
        "norm": "no: one norm over all heads",
        "head_dim": "no: heads as wide as hidden_size / num_attention_heads",
    }
    always = added_heads_change(attention, [norm for norm in attention.norms if norm.key is None])
    if always is not None:
        return refusals[always]
    keys = {norm.key for norm in attention.norms if added_heads_change(attention, [norm]) is not None}
    return ", ".join(f"not with `{key}`" for key in sorted(filter(None, keys))) or "yes"


def _family_row(family: Family, attention: Attention) -> str:
    packing = next(p for p in attention.projections if "query" in p.roles)
    stored = {
        "separate": "separate tensors",
        "stacked": "one tensor: all q, all k, all v",
        "per_head": "one tensor: q, k, v of each head side by side",
    }[packing.packing]
    if packing.head_axis == 1:
        stored += ", transposed"
    positions = "learned or none"
    if attention.rotary:
        positions = f"rotary, {attention.rotary.style}, {attention.rotary.fraction:.0%} of head_dim"
    elif attention.head_bias:
        positions = "bias per head"
    norm = attention.norms[0].span.replace("_", " ") if attention.norms else "-"
    if attention.norms and attention.norms[0].key:
        norm += f", if {attention.norms[0].key}"
    order = "bound to its index" if attention.head_bias else "free"
    convert = "stock" if family.is_native else "grouped"
    kind = attention.kind
    return f"| {family.model_type} | {kind} | {stored} | {positions} | {norm} | {order} | {convert} |"


def errors_page() -> str:
    """Return the page of exit codes, from the error classes."""
    lines = [
        "# Exit codes\n",
        "Generated from `gqkva_convert/errors.py` by `python docs/generate.py`. Every error is one line on",
        "stderr that says what was found, where, and what to do next.\n",
        "| code | error | meaning |",
        "| --- | --- | --- |",
        "| 0 | - | done |",
        "| 1 | - | a bug of ours, with its traceback |",
        "| 2 | usage | an option that does not exist or has the wrong form |",
    ]
    found = [
        (kind.exit_code, name, (inspect.getdoc(kind) or "").splitlines()[0])
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, (errors.GqkvaError, errors.Terminated))
    ]
    rows = [row for row in sorted(found) if row[1] != "GqkvaError"]
    lines += [f"| {code} | `{name}` | {meaning} |" for code, name, meaning in rows]
    lines.append(
        "| 130 | Ctrl-C | Interrupted; complete shards are kept, and the same command resumes from them. |"
    )
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Return the page of training settings, from the class that checks them."""
    text = inspect.getdoc(TrainingSettings) or ""
    intro, _, attributes = text.partition("Attributes:\n")
    lines = [
        "# Training settings\n",
        "Generated from `gqkva_convert/uptraining/settings.py` by `python docs/generate.py`. In Python they",
        "are keywords of `uptrain`, `pretrain` and `teacher`. On the command line, `--set NAME=VALUE` gives",
        "those without an option of their own, and `--settings FILE` names a YAML file of settings.\n",
        " ".join(intro.split("\n\n", 1)[1].split()) + "\n",
        "| setting | default | meaning |",
        "| --- | --- | --- |",
    ]
    found: dict[str, str] = {}
    for line in attributes.splitlines():
        name, colon, rest = line.strip().partition(": ")
        if line.startswith("    ") and not line.startswith("     ") and colon:
            found[name] = rest
        elif found and line.strip():
            found[list(found)[-1]] += f" {line.strip()}"
    for name, field in TrainingSettings.model_fields.items():
        default = "-" if field.is_required() or field.default in (None, {}) else f"`{field.default}`"
        lines.append(f"| `{name}` | {default} | {found[name].replace('``', '`')} |")
    return "\n".join(lines) + "\n"


def schema_page() -> str:
    """Return the page of a recipe's keys, from the classes that check it."""
    lines = [
        "# Recipe schema\n",
        "Generated from `gqkva_convert/recipes/schema.py` by `python docs/generate.py`. How to write and run",
        "recipes: [recipes.md](recipes.md).\n",
    ]
    for title, model in (
        ("A recipe", Recipe),
        ("A step, `command: {option: value}` with these beside it", Step),
        ("Repeated steps, `for` and `steps` in place of a command", Repeated),
        ("An entry of `assume`, by Hub id", Assumed),
        ("`gpus`", Gpus),
    ):
        lines += [f"## {title}\n", "| key | needed | meaning |", "| --- | --- | --- |"]
        for name, field in model.model_fields.items():
            if model is Step and name in ("command", "options", "repeats"):
                continue
            name = field.alias or name
            needed = "yes" if field.is_required() and model is not Step else "no"
            lines.append(f"| `{name}` | {needed} | {field.description} |")
        lines.append("")
    lines += [
        "## Commands and their options\n",
        "Arguments and options of the command line ([cli.md](cli.md)), named as the parameters of the Python",
        "functions ([python.md](python.md)) or as their flags, with hyphens or underscores. Write repeated",
        "or comma-separated values as a list, `NAME=VALUE` as a mapping, and `null` to omit an option.\n",
        "| command | options |",
        "| --- | --- |",
    ]
    for name, facts in FACTS.items():
        options = [option.name for option in options_of(facts.function) if option.name not in RESERVED]
        lines.append(f"| `{name}` | {', '.join(f'`{option}`' for option in options)} |")
    return "\n".join(lines) + "\n"


def python_page() -> str:
    """Return the page of Python: signature and docstring of each name in `gqkva_convert.__all__`."""
    parts = [
        "# Python\n",
        "Generated from the docstrings of `gqkva_convert.__all__` by `python docs/generate.py`. Every",
        "[command](cli.md) calls the function of its name; importing the package loads neither torch nor",
        "transformers.\n",
    ]
    found = {name: getattr(gqkva_convert, name) for name in gqkva_convert.__all__}
    ordered = [name for name in (*COMMANDS, *found) if name in found]
    for name in dict.fromkeys(ordered):
        parts.append(f"## {name}\n\n{_signature(name, found[name])}\n\n{_described(found[name])}\n")
    return "\n".join(parts)


def _signature(name: str, thing: Any) -> str:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return f"```py\nclass {name}(Exception)\n```"
    if thing is TrainingSettings:
        return "```py\nTrainingSettings(*, data, tokens=None, teacher=None, ...)\n```"
    line = _call(name, thing)
    if len(line) > 90:
        line = _call(name, thing, one_per_line=True)
    return f"```py\n{line}\n```"


def _call(name: str, thing: Any, *, one_per_line: bool = False) -> str:
    """Return the call of a function or class; with ``one_per_line``, a line for each parameter."""
    signature = inspect.signature(thing)
    shown: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        part = parameter.name
        if parameter.annotation is not parameter.empty:
            part += f": {parameter.annotation}"
        if parameter.default is not parameter.empty:
            default = parameter.default
            part += f" = {default.__name__ if inspect.isfunction(default) else repr(default)}"
        shown.append(part)
    returned = signature.return_annotation
    behind = "" if inspect.isclass(thing) or returned is signature.empty else f" -> {returned}"
    if one_per_line:
        return f"{name}(\n" + "".join(f"    {part},\n" for part in shown) + f"){behind}"
    return f"{name}({', '.join(shown)}){behind}"


_SECTIONS = ("Args", "Returns", "Raises", "Attributes")


def _described(thing: Any) -> str:
    """Return a docstring as Markdown, its sections as lists."""
    lines: list[str] = []
    section = ""
    if thing is TrainingSettings:
        return "Every setting: [training-settings.md](training-settings.md)."
    for line in (inspect.getdoc(thing) or "").replace("``", "`").splitlines():
        if line.rstrip(":") in _SECTIONS and line.endswith(":"):
            section = line.rstrip(":")
            lines += [f"**{section}**", ""]
        elif section in ("Args", "Raises", "Attributes") and re.match(r"    \S+: ", line):
            name, _, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}")
        elif section and line.startswith("    "):
            lines.append(f"  {line.strip()}" if section != "Returns" else line.strip())
        else:
            lines.append(line)
    if inspect.isclass(thing):
        lines += _methods(thing)
    return "\n".join(lines)


def _methods(thing: type) -> list[str]:
    """Return a list of a class's public methods and properties."""
    shown = []
    for name, value in vars(thing).items():
        plain = getattr(value, "__func__", getattr(value, "fget", value))
        if not name.startswith("_") and inspect.isfunction(plain):
            call = name if isinstance(value, property) else _call(name, getattr(thing, name))
            says = (inspect.getdoc(value) or "").replace("``", "`").splitlines()[:1]
            shown.append(": ".join([f"- `{call}`", *says]))
    return ["", "**Methods and properties**", "", *shown] if shown else []


def order_drawing() -> str:
    """Return the order of the packages that `tests/support/layers.py` states, as one line of text."""
    layers = [" · ".join(names) for names in ORDER]
    lines = [layers[0]]
    for layer in layers[1:]:
        if len(lines[-1]) + len(layer) > 100:
            lines.append("      ")
        lines[-1] += f" → {layer}"
    return "\n".join(lines)


def package_tree() -> str:
    """Return every package with the first line of its docstring, from the ground up."""
    package = Path(gqkva_convert.__file__).parent
    rows: list[tuple[str, Path]] = []
    for name in (name for names in ORDER for name in names):
        if (package / f"{name}.py").exists():
            rows.append((f"{name}.py", package / f"{name}.py"))
            continue
        rows.append((f"{name}/", package / name / "__init__.py"))
        inner = sorted((package / name).glob("*/__init__.py"))
        rows += [(f"    {path.parent.name}/", path) for path in inner]
    width = max(len(shown) for shown, _ in rows)
    docs = [(ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0] for _, path in rows]
    return "\n".join(f"{shown:<{width}}  {doc}" for (shown, _), doc in zip(rows, docs, strict=True))


def family_lists() -> str:
    """Return the model types of the families, those with stock GQA and MQA first."""
    lines = []
    for form, is_native in (("stock", True), ("grouped", False)):
        names = sorted(name for name, family in FAMILIES.items() if family.is_native == is_native)
        text = textwrap.fill(", ".join(names), 100, break_on_hyphens=False)
        lines.append(textwrap.indent(text, " " * 10).replace(" " * 10, f"{form + ':':<10}", 1))
    for form, names in (("proved", sorted(NATIVE)), ("nested", sorted(NESTED))):
        text = textwrap.fill(", ".join(names), 100, break_on_hyphens=False)
        lines.append(textwrap.indent(text, " " * 10).replace(" " * 10, f"{form + ':':<10}", 1))
    return "\n".join(lines)


def shape_table() -> str:
    """Return the shapes of records that are read, the first that fits first."""
    lines = ["| shape | columns | read besides | as |", "| --- | --- | --- | --- |"]
    for shape in SHAPES:
        needed, besides = (
            ", ".join(f"`{name}`" for name in names) for names in (shape.columns, shape.optional)
        )
        lines.append(f"| {shape.kind} | {needed} | {besides} | {shape.read_as} |")
    return "\n".join(lines)


# Generated parts of hand-written pages: each is the code block or the table below a comment that names it.
PARTS: dict[str, tuple[tuple[str, Callable[[], str]], ...]] = {
    "../README.md": (("families", family_lists),),
    "../CONTRIBUTING.md": (("order", order_drawing),),
    "data.md": (("shapes", shape_table),),
    "design.md": (("order", order_drawing), ("tree", package_tree)),
}


def with_parts(name: str) -> str:
    """Return a hand-written page with its generated parts replaced.

    Args:
        name: The page, relative to this folder.
    """
    text = (DOCS / name).read_text()
    for part, make in PARTS[name]:
        comment, made = rf"(<!-- generated: {part} -->\n", make()
        inner = r")(?:\|[^\n]*\n)+()" if made.startswith("|") else r"```\n).*?(\n```\n)"
        ending = "\n" if made.startswith("|") else ""
        text, count = re.subn(
            comment + inner,
            lambda found: f"{found[1]}{made}{ending}{found[2]}",  # noqa: B023
            text,
            flags=re.DOTALL,
        )
        assert count == 1, f"{name} has {count} places for {part}"
    return text


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "python.md": python_page,
    "training-settings.md": settings_page,
    "recipe-schema.md": schema_page,
    "families.md": families_page,
    "errors.md": errors_page,
    **{name: partial(with_parts, name) for name in PARTS},
}


def main() -> int:
    """Write every page, or check that it is up to date; return the number of stale pages."""
    stale = []
    for name, page in PAGES.items():
        text = page()
        if "--check" in sys.argv:
            if (DOCS / name).read_text() != text:
                stale.append(name)
        else:
            (DOCS / name).write_text(text)
    if stale:
        print(f"out of date: {', '.join(stale)}; run python docs/generate.py", file=sys.stderr)
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
