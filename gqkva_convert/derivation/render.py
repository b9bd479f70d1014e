"""Derived facts as the arguments of `native`, and as the text of the generated tables."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gqkva_convert.architectures import Bias, Family, Key, Nested, Rotary, name_pattern
from gqkva_convert.architectures.llama import LLAMA
from gqkva_convert.architectures.native import native
from gqkva_convert.architectures.schema import ALWAYS, HIDDEN_OVER_HEADS, NEVER

_HEADER = '''"""Tables of decoders, made by `make families` and proved; not edited by hand."""

from gqkva_convert.architectures.llama import CONFIGURED_BIAS
from gqkva_convert.architectures.native import native
from gqkva_convert.architectures.nested import Nested
from gqkva_convert.architectures.schema import ALWAYS, HIDDEN_OVER_HEADS, Bias, Family, Key, Rotary

'''
_CONFIGURED = Bias(False, "attention_bias")


def arguments(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `native` that say what `derive` found, without those that are defaults."""
    given = {key: value for key, value in facts.items() if not key.endswith("bias_key")}
    given["bias"] = Bias(facts["bias"], facts.get("bias_key"))
    given["output_bias"] = Bias(facts["output_bias"], facts.get("output_bias_key"))
    given["rotary"] = None if facts["rotary"] is None else Rotary(*facts["rotary"])
    if "head_dim" in facts:
        number = facts["head_dim"]
        given["head_dim"] = HIDDEN_OVER_HEADS if number is None else Key("head_dim", number)
    layer = f"{facts['block'].partition('{layer}.')[0]}{{layer}}."
    others = given.pop("others")
    given["layer"] = tuple(name.removeprefix(layer) for name in others if name.startswith(layer))
    given["top"] = tuple(name for name in others if not name.startswith(layer))
    parameters = inspect.signature(native).parameters
    common = LLAMA.known_heads()
    given["heads"] = tuple(
        name for name in given["heads"] if not any(name_pattern(head).fullmatch(name) for head in common)
    )
    if not given["values"]:
        del given["values"]
    return {key: value for key, value in given.items() if parameters[key].default != value}


def family(facts: Mapping[str, Any]) -> Family:
    """Return the table of derived facts."""
    return native(**arguments(facts))


def text(
    found: Mapping[str, Mapping[str, Any]], nested: Mapping[str, Nested], refused: Mapping[str, str]
) -> str:
    """Return the generated module.

    Args:
        found: Derived facts by model type.
        nested: Models with a text model inside.
        refused: For each other type that generates text, the reason why it has no table.
    """
    lines = ["NATIVE: dict[str, Family] = {", "    family.model_type: family", "    for family in ("]
    for name in sorted(found):
        given = arguments(found[name])
        shown = [repr(given.pop("model_type")), repr(given.pop("stem"))]
        shown += [f"{key}={_shown(given[key])}" for key in sorted(given)]
        lines.append(f"        native({', '.join(shown)}),")
    lines += ["    )", "}", ""]
    lines += ["# Models around a text model of these types or of those written by hand."]
    lines += ["NESTED: dict[str, Nested] = {", "    outer.model_type: outer", "    for outer in ("]
    for name in sorted(nested):
        shown = [f"{field.name}={getattr(nested[name], field.name)!r}" for field in fields(Nested)]
        lines.append(f"        Nested({', '.join(shown)}),")
    lines += ["    )", "}", ""]
    lines += ["# Types of models that generate text and have no table, and why."]
    lines += ["REFUSED: dict[str, str] = {"]
    lines += [f"    {name!r}: {refused[name]!r}," for name in sorted(refused)]
    return _HEADER + "\n".join([*lines, "}", ""])


def _shown(value: Any) -> str:
    names = {ALWAYS: "ALWAYS", NEVER: "NEVER", _CONFIGURED: "CONFIGURED_BIAS"}
    if isinstance(value, Bias):
        return names.get(value) or f"Bias({value.present!r}, {value.key!r})"
    if isinstance(value, Rotary):
        return (
            f"Rotary({value.style!r})"
            if value.fraction == 1
            else f"Rotary({value.style!r}, {value.fraction!r})"
        )
    if isinstance(value, Key):
        return f"Key({value.name!r}, {value.default!r})"
    return "HIDDEN_OVER_HEADS" if value == HIDDEN_OVER_HEADS else repr(value)
