"""`make families`: derive and prove a table of every causal language model, and write them all."""

from __future__ import annotations

import re
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

from gqkva_convert import architectures
from gqkva_convert.architectures import FAMILIES, TEXT, Nested, around
from gqkva_convert.derivation.nested import derive_nested, text_types
from gqkva_convert.derivation.proof import prove
from gqkva_convert.derivation.render import family, text
from gqkva_convert.derivation.stock import stock_config
from gqkva_convert.derivation.table import derive, small_config
from gqkva_convert.errors import FamilyError, first_line

_SECONDS = 30
_LONGEST = 75
# Types whose default configuration is unlike every published one.
_MIXED = "its published configurations have layers without attention"
_LEFT_OUT = {"lfm2": _MIXED, "lfm2_moe": _MIXED}


def candidates() -> list[str]:
    """Return the types of models that generate text and have no table written by hand, nested ones last."""
    return sorted(text_types(), key=lambda name: (_is_nested(name), name))


def _is_nested(model_type: str) -> bool:
    try:
        return hasattr(stock_config(model_type, {}), TEXT)
    except FamilyError:
        return False


def examine(model_type: str, found: dict[str, Any], nested: dict[str, Nested]) -> None:
    """Note the facts of a type's table, proved on its default configuration.

    Raises:
        FamilyError: It has none; says why.
    """
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(_SECONDS)
    try:
        if getattr(stock_config(model_type, {}), TEXT, None) is None:
            facts = derive(model_type)
            # Small already: the defaults of some classes are numbers that do not fit each other.
            prove(small_config(stock_config(model_type, {})), family(facts))
            found[model_type] = facts
            return
        outer, text, small = derive_nested(model_type, found)
        if outer.text in _LEFT_OUT:
            raise FamilyError(_LEFT_OUT[outer.text])
        inner = FAMILIES.get(outer.text) or family(text or found[outer.text])
        prove(small, around(outer, inner))
        nested[model_type] = outer
        if text is not None:
            found[outer.text] = text
    except FamilyError:
        raise
    except Exception as error:  # a class that the prober does not understand
        raise FamilyError(f"not understood ({type(error).__name__}: {first_line(error)[:100]})") from error
    finally:
        signal.alarm(0)


def _too_long(*_: object) -> None:
    raise FamilyError(f"a small model of it takes more than {_SECONDS} s to prove")


def _reason(error: FamilyError) -> str:
    """Return an error's text without the place in the small model, at most a line long."""
    said = re.sub(r"\S*/gqkva-\w+-\S*:? ", "", first_line(error))
    said = re.sub(r"\bmodel\.layers\.\d+\.(\w+: |self_attn\.)", "", said)
    return textwrap.shorten(said, _LONGEST, placeholder="...")


def main() -> None:
    """Write the generated module; name types to look at these alone and write nothing."""
    found: dict[str, dict[str, Any]] = {}
    nested: dict[str, Nested] = {}
    refused: dict[str, str] = {}
    for model_type in sys.argv[1:] or candidates():
        try:
            if model_type in _LEFT_OUT:
                raise FamilyError(_LEFT_OUT[model_type])
            examine(model_type, found, nested)
        except FamilyError as error:
            refused[model_type] = _reason(error)
        print(f"{model_type}: {refused.get(model_type, 'proved')}", file=sys.stderr, flush=True)
    if sys.argv[1:]:
        print(text(found, nested, refused))
    else:
        Path(architectures.__file__).with_name("native_tables.py").write_text(text(found, nested, refused))
    print(f"{len(found)} and {len(nested)} nested tables, {len(refused)} without", file=sys.stderr)


if __name__ == "__main__":
    main()
