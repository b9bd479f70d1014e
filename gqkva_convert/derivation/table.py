"""From a model type of the installed transformers to the arguments of `native`: one generated table."""

from __future__ import annotations

import hashlib
import itertools
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from gqkva_convert.architectures import TEXT
from gqkva_convert.checkpoint.folder import open_checkpoint
from gqkva_convert.derivation.probe import FoundBlock, find_blocks
from gqkva_convert.derivation.stock import build, stock_class, stock_config
from gqkva_convert.derivation.switches import find_defaults, find_switches
from gqkva_convert.derivation.tiny import HEAD_DIM, shrink, shrink_tower
from gqkva_convert.errors import FamilyError

# Tasks of decoders, in the order that tables name them.
_TASKS = ("CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
_ROLES = ("query", "key", "value", "output")
_STYLES = ("half", "interleaved")


def derive(model_type: str) -> dict[str, Any]:
    """Return the arguments of `native` that describe a model type, as transformers' defaults build it.

    Raises:
        FamilyError: It is no decoder that a generated table can describe; says why.
    """
    architecture, tasks = _classes(model_type)
    config = stock_config(model_type, {})
    small = small_config(config)
    model = build(stock_config(model_type, small), architecture)
    blocks = all_blocks(model)
    facts: dict[str, Any] = {
        "model_type": model_type,
        "stem": architecture.removesuffix("ForCausalLM"),
        "tasks": tasks,
        "ties_by_default": bool(getattr(config, "tie_word_embeddings", False)),
    }
    own = type(config).__name__
    if own != f"{facts['stem']}Config":
        facts["config"] = own
    facts |= stored_facts(model, blocks, same_in_layers(blocks), _prefixes(model))
    facts["heads"] = _task_heads(model, _prefixes(model)[0])

    def rebuilt(values: Mapping[str, Any]) -> Any:
        return stock_class(architecture)(stock_config(model_type, values))

    return (
        facts
        | find_defaults(model_type, small)
        | find_switches(model_type, rebuilt, small, model, blocks, facts)
    )


def all_blocks(model: Any) -> list[FoundBlock]:
    """Return a decoder's attention blocks.

    Raises:
        FamilyError: A layer has none, or a block does what a table cannot say.
    """
    blocks, layers = find_blocks(model), model.config.get_text_config().num_hidden_layers
    if len(blocks) != layers:
        raise FamilyError(f"{len(blocks)} of {layers} layers have attention")
    return blocks


def small_config(config: Any) -> dict[str, Any]:
    """Return a configuration object's values with small sizes.

    Raises:
        FamilyError: Its numbers of layers and heads have other names, or it has several towers.
    """
    text = getattr(config, TEXT, None)
    if text is not None:
        outer = config.to_dict()
        return {key: small_config(text) if key == TEXT else shrink_tower(key, outer[key]) for key in outer}
    values = config.to_dict()
    if "num_hidden_layers" not in values or "num_attention_heads" not in values:
        raise FamilyError("its numbers of layers and heads have other names or are nested")
    if "num_key_value_heads" not in values:
        raise FamilyError("it has no num_key_value_heads in transformers; it needs a grouped model")
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    small = shrink(values, heads, config.num_key_value_heads or heads, width)
    if "head_dim" in small and small["head_dim"] is None:
        small["head_dim"] = HEAD_DIM  # some classes cannot be built with null, their own default
    return small


def _classes(model_type: str) -> tuple[str, tuple[str, ...]]:
    """Return the causal language model's class and the tasks whose classes share its stem."""
    from transformers.models.auto import modeling_auto

    def named(task: str) -> str | None:
        snake = {"CausalLM": "CAUSAL_LM"}.get(task) or re.sub(r"(?<=.)(?=[A-Z])", "_", task).upper()
        found = getattr(modeling_auto, f"MODEL_FOR_{snake}_MAPPING_NAMES").get(model_type)
        return found if isinstance(found, str) or found is None else str(found[0])

    architecture = named("CausalLM")
    if architecture is None or not architecture.endswith("ForCausalLM"):
        raise FamilyError("transformers has no causal language model of it")
    stem = architecture.removesuffix("ForCausalLM")
    return architecture, tuple(task for task in _TASKS if named(task) == f"{stem}For{task}")


def same_in_layers(blocks: list[FoundBlock]) -> tuple[str, FoundBlock]:
    """Return the name of a layer's attention block, and one that stands for all.

    Layers without rotary positions may stand among those with: what turns their planes changes nothing there.

    Raises:
        FamilyError: Layers differ otherwise.
    """
    kinds = set()
    for layer, block in enumerate(blocks):
        name = re.sub(rf"\.{layer}\.", ".{layer}.", block.module, count=1)
        parts = [
            (role, one.module.removeprefix(block.module), one.starts, one.has_bias, one.head_axis)
            for role, one in block.projections.items()
        ]
        norms = [
            (norm.module.removeprefix(block.module), norm.role, norm.span, norm.is_centred)
            for norm in block.norms
        ]
        kinds.add((name, repr(parts), repr(norms)))
    turning = {block.planes for block in blocks if block.planes}
    if len(kinds) > 1 or len(turning) > 1:
        raise FamilyError("its layers attend in different ways")
    return next(iter(kinds))[0], next((block for block in blocks if block.planes), blocks[0])


def stored_facts(
    model: Any, blocks: list[FoundBlock], same: tuple[str, FoundBlock], prefixes: tuple[str, ...]
) -> dict[str, Any]:
    """Return the facts that are seen in the names that a saved model stores."""
    _, block = same
    layer = blocks.index(block)
    stored, name_of = stored_names(model)

    def on_disk(name: str) -> str:
        return name_of(name).removesuffix(".weight")

    projections = {role: on_disk(f"{one.module}.weight") for role, one in block.projections.items()}
    prefix = next(each for each in prefixes if projections["query"].startswith(each))
    start = _shared_start(list(projections.values()))
    names = tuple(projections[role].removeprefix(start) for role in _ROLES)
    facts: dict[str, Any] = {
        "prefixes": prefixes,
        "block": start.removeprefix(prefix).replace(f".{layer}.", ".{layer}.", 1),
        **_packing(block, names),
        **_rotary(block),
        **_norms(block, {norm.module: on_disk(f"{norm.module}.weight") for norm in block.norms}, start),
    }
    if block.gain is None:
        facts["gain"] = None
    else:
        gain = on_disk(f"{block.gain[0]}.weight") + ".weight"
        facts["gain"] = gain.removeprefix(prefix).replace(f".{layer}.", ".{layer}.", 1)
        facts["gain_offset"] = block.gain[1]
    facts["others"] = _others(stored, prefix, facts["block"])
    tied = getattr(model, "_tied_weights_keys", None) or {}
    facts["is_tied"] = "lm_head.weight" in tied
    return facts


def _shared_start(names: list[str]) -> str:
    """Return the modules that all names begin with."""
    parts = zip(*(name.split(".") for name in names), strict=False)
    shared = itertools.takewhile(lambda each: len(set(each)) == 1, parts)
    return "".join(f"{each[0]}." for each in shared)


def stored_names(model: Any) -> tuple[set[str], Callable[[str], str]]:
    """Return the names that a saved model stores, and a function from a parameter's name to its own there."""
    with tempfile.TemporaryDirectory(prefix="gqkva-derive-") as folder:
        model.save_pretrained(folder)
        stored = _stored_digests(Path(folder))
    parameters = {name: _digest(value) for name, value in model.named_parameters()}

    def name_of(name: str) -> str:
        found = [each for each, digest in stored.items() if digest == parameters[name]]
        if len(found) != 1:
            raise FamilyError(f"{name} is not stored as one tensor of its own")
        return found[0]

    return set(stored), name_of


def _packing(block: FoundBlock, names: tuple[str, ...]) -> dict[str, Any]:
    """Return how queries, keys and values are stored."""
    head_dim, found = block.head_dim, block.projections
    queries, keys, values = (found[role] for role in _ROLES[:3])
    runs = {role: [head * head_dim for head in range(len(one.starts))] for role, one in found.items()}
    fused = len({names[0], names[1], names[2]}) == 1
    shifts = {"query": 0, "key": 0, "value": 0, "output": 0}
    if fused:
        shifts |= {
            "key": len(queries.starts) * head_dim,
            "value": (len(queries.starts) + len(keys.starts)) * head_dim,
        }
    for role, one in found.items():
        if list(one.starts) != [start + shifts[role] for start in runs[role]]:
            raise FamilyError(f"its {role} heads are stored in an order that no table can say")
    if len(keys.starts) != len(values.starts):
        raise FamilyError("it has other numbers of key than of value heads")
    biases = {one.has_bias for one in (queries, keys, values)}
    if len(biases) > 1:
        raise FamilyError("only some of queries, keys and values have a bias")
    packed = (
        {"fused": names[0], "names": ("q_proj", "k_proj", "v_proj", names[3])} if fused else {"names": names}
    )
    return {**packed, "bias": biases.pop(), "output_bias": found["output"].has_bias}


def _rotary(block: FoundBlock) -> dict[str, Any]:
    planes = len(block.planes)
    if not planes:
        return {"rotary": None}
    half = tuple((plane, plane + planes) for plane in range(planes))
    side = tuple((2 * plane, 2 * plane + 1) for plane in range(planes))
    if block.planes not in (half, side) or planes == 1:
        raise FamilyError(f"its heads turn in planes that no table can say: {block.planes}")
    return {"rotary": (_STYLES[block.planes == side], 2 * planes / block.head_dim)}


def _norms(block: FoundBlock, stored: Mapping[str, str], start: str) -> dict[str, Any]:
    if not block.norms:
        return {}
    by_role = {norm.role: norm for norm in block.norms}
    spans = {norm.span for norm in block.norms}
    if len(block.norms) != 2 or len(by_role) != 2 or len(spans) != 1:
        raise FamilyError("its norms on queries and keys differ")
    if any(norm.is_centred for norm in block.norms):
        raise FamilyError("its norms on queries and keys take the mean away")
    names = [stored[by_role[role].module] for role in ("query", "key")]
    if any(not name.startswith(start) for name in names):
        raise FamilyError("its norms on queries and keys are not stored beside its projections")
    return {"norm": spans.pop(), "norms": tuple(name.removeprefix(start) for name in names)}


def _prefixes(model: Any) -> tuple[str, ...]:
    """Return the prefixes of the base model's tensors, the causal language model's first."""
    import transformers

    stem = type(model).__name__.removesuffix("ForCausalLM")
    classes = [getattr(transformers, f"{stem}For{task}", None) for task in _TASKS]
    found = [f"{one.base_model_prefix}." for one in classes if one is not None and one.base_model_prefix]
    return tuple(dict.fromkeys([*found, ""]))


def _others(stored: Iterable[str], prefix: str, block: str) -> tuple[str, ...]:
    """Return patterns of the base model's tensors that hold no heads: one for each module that has none."""
    layers = block.partition("{layer}")[0]
    found: dict[str, set[str]] = {}
    for name in sorted(stored):
        if not name.startswith(prefix):
            continue
        name = re.sub(rf"^{re.escape(layers)}\d+\.", f"{layers}{{layer}}.", name.removeprefix(prefix))
        if name.startswith(block):
            continue
        inside = name.removeprefix(f"{layers}{{layer}}.")
        module, _, rest = inside.partition(".")
        found.setdefault(name[: len(name) - len(inside)] + module, set()).add(rest)
    return tuple(
        name if rests == {""} else f"{name}.weight" if rests == {"weight"} else f"{name}.*"
        for name, rests in found.items()
    )


def _task_heads(model: Any, prefix: str) -> tuple[str, ...]:
    """Return patterns of the tensors outside the base model, of all task classes."""
    import transformers

    names = {name for name, _ in model.named_parameters() if not name.startswith(prefix)} | {"lm_head.weight"}
    stem = type(model).__name__.removesuffix("ForCausalLM")
    for task in _TASKS[1:]:
        loader = getattr(transformers, f"{stem}For{task}", None)
        if loader is not None:
            with torch.device("meta"):
                other = loader(model.config)
            base = f"{loader.base_model_prefix}."
            names |= {name for name, _ in other.named_parameters() if not name.startswith(base)}
    return tuple(sorted(names))


def _stored_digests(folder: Path) -> dict[str, str]:
    checkpoint = open_checkpoint(folder)
    with checkpoint.reader() as reader:
        return {
            name: hashlib.sha256(reader.read(tensor, 0, tensor.nbytes).tobytes()).hexdigest()
            for name, tensor in checkpoint.tensors.items()
        }


def _digest(value: torch.Tensor) -> str:
    return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
