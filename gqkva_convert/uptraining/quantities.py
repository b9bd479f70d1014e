"""Values of settings as people write them: counts with units, shares in per cent, weights by name."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_count(value: Any) -> Any:
    """Read ``20M`` as 20,000,000; units are k, M, B and T."""
    if type(value) is not str:
        return value
    found = re.fullmatch(r"\s*([\d_]+(?:\.\d+)?(?:[eE]\d{1,2})?)\s*([kmbgtKMBGT]?)\s*", value)
    return value if found is None else round(float(found[1]) * _UNITS[found[2].lower()])


def _require_count(value: Any) -> Any:
    """Read a count as `parse_count` does, and refuse any other text."""
    count = parse_count(value)
    if type(count) is str:
        raise ValueError("write a number such as 500k or 20M")
    return count


def parse_share(value: Any) -> Any:
    """Read ``1%`` as 0.01."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if type(value) is str else None
    return value if found is None else float(found[1]) / 100


def parse_weights(value: Any) -> Any:
    """Read ``kl=1,task=0.5`` as a mapping; a name alone has weight 1."""
    if type(value) is not str:
        return value
    parts = [part.partition("=") for part in value.split(",") if part.strip()]
    return {name.strip(): weight.strip() or 1.0 for name, _, weight in parts}


Count = Annotated[int, BeforeValidator(_require_count), Field(ge=1)]
Share = Annotated[float, BeforeValidator(parse_share), Field(ge=0, le=1)]
Weights = Annotated[dict[str, Annotated[float, Field(ge=0)]], BeforeValidator(parse_weights)]
