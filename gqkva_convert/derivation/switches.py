"""What the keys of a configuration change in a small stock model: defaults of numbers, biases, norms."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gqkva_convert.derivation.probe import FoundBlock
from gqkva_convert.derivation.stock import stock_config
from gqkva_convert.derivation.tiny import HEAD_DIM
from gqkva_convert.errors import FamilyError
from gqkva_convert.source.config_keys import may_change_attention

# Keys of older configurations, which a configuration class turns into others.
_OLD_KEYS = re.compile(r'kwargs\.(?:pop|get|setdefault)\(\s*"(\w+)"')
# Keys that the record of every decoder names by itself.
_NUMBERS = {"num_attention_heads", "num_key_value_heads", "head_dim"}


def find_defaults(model_type: str, small: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the class assumes where the configuration names no key/value heads or no head_dim."""
    heads, width = 6, 6 * 20
    sizes = {"num_attention_heads": heads, "hidden_size": width}
    given = {key: value for key, value in small.items() if key not in _NUMBERS} | sizes
    without = _try_config(model_type, given | {"head_dim": HEAD_DIM})
    facts: dict[str, Any] = {}
    if without is not None and without.num_key_value_heads not in (None, heads):
        facts["key_value_heads"] = without.num_key_value_heads
    without = _try_config(model_type, given | {"num_key_value_heads": 2})
    found = getattr(without, "head_dim", None)
    if isinstance(found, int) and found != width // heads:
        facts["head_dim"] = found
    return facts


def _try_config(model_type: str, values: Mapping[str, Any]) -> Any:
    try:
        return stock_config(model_type, values)
    except FamilyError:  # the class checks these numbers against each other
        return None


def find_switches(
    model_type: str,
    rebuilt: Callable[[Mapping[str, Any]], Any],
    small: Mapping[str, Any],
    model: Any,
    blocks: list[FoundBlock],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the keys that turn biases and norms on, those that must stay, and all others about attention."""
    start = [each.module for each in blocks]
    base = _block_shapes(model, start)
    biases = {f"{one.module.rpartition('.')[2]}.bias" for one in blocks[0].projections.values()}
    output = blocks[0].projections["output"].module.rpartition(".")[2]
    found: dict[str, Any] = {}
    values: dict[str, tuple[object, ...]] = {}
    wider = {**small, "head_dim": HEAD_DIM + 2}
    if _try_shapes(rebuilt, wider, start) == base:
        found["head_dim"] = None  # hidden size / heads, whatever the key says
    for key in sorted(key for key, value in small.items() if isinstance(value, bool)):
        changed = _try_shapes(rebuilt, {**small, key: not small[key]}, start)
        if changed is None or changed == base:
            continue
        names = {name.partition(".")[2] for name in changed.keys() ^ base.keys()}
        if any(changed[name] != base[name] for name in changed.keys() & base.keys()):
            raise FamilyError(f"{key} changes the shapes of its projections")
        if names <= biases and (len(changed) > len(base)) == (not small[key]):
            inputs = {name for name in names if name != f"{output}.bias"}
            if inputs and len(inputs) != len(biases) - 1:
                raise FamilyError(f"{key} gives only some of queries, keys and values a bias")
            if inputs:
                found["bias_key"] = key
            if f"{output}.bias" in names:
                found["output_bias_key"] = key
        elif facts.get("norm") and small[key] and names == {f"{each}.weight" for each in facts["norms"]}:
            found["norm_key"] = key
        else:
            values[key] = (small[key],)
    known = {found.get(name) for name in ("bias_key", "output_bias_key", "norm_key")} | _NUMBERS | set(values)
    config = stock_config(model_type, {})
    text = Path(inspect.getfile(type(config))).read_text()
    named = {*config.to_dict(), *_OLD_KEYS.findall(text)}
    keys = {key for key in named if may_change_attention(key)} - known
    return {**found, "keys": tuple(sorted(keys)), "values": values}


def _block_shapes(model: Any, modules: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the blocks' parameters, named ``<layer>.<name inside the block>``."""
    return {
        f"{layer}.{name}": tuple(parameter.shape)
        for layer, module in enumerate(modules)
        for name, parameter in model.get_submodule(module).named_parameters()
    }


def _try_shapes(
    rebuilt: Callable[[Mapping[str, Any]], Any], values: Mapping[str, Any], modules: list[str]
) -> dict[str, tuple[int, ...]] | None:
    try:
        with torch.device("meta"):
            return _block_shapes(rebuilt(values), modules)
    except Exception:  # a combination that the class refuses is no configuration of anybody
        return None
