"""Adapters of PEFT beside or instead of weights: transformers loads them first, and merging heads cannot."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MODEL_WEIGHTS = tuple(
    f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")
)
# The ends of the Auto classes of PEFT and of transformers, by the task that an adapter states.
_TASKS = {
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_2_SEQ_LM": "ForSeq2SeqLM",
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder that holds an adapter to be merged, or an adapter alone.

    Raises:
        CheckpointError: It does; says how to merge it.
    """
    names = {path.name for path in folder.iterdir()}
    refuse_adapter_among(names, str(folder), lambda: folder / ADAPTER_CONFIG)


def refuse_adapter_among(names: Collection[str], model: str, settings: Callable[[], Path]) -> None:
    """Refuse a model whose files are, or hold, an adapter to be merged.

    A configuration of an adapter alone, beside weights, is stale: the adapter was merged or moved away.

    Args:
        names: Its files.
        model: Its folder or Hub id.
        settings: Returns the path of its `ADAPTER_CONFIG`; called only where there is one.

    Raises:
        CheckpointError: They do; says how to merge it.
    """
    stored = [name for name in _WEIGHTS if name in names]
    is_alone = not any(name in names for name in _MODEL_WEIGHTS)
    if ADAPTER_CONFIG not in names or not (stored or is_alone):
        return
    config: Any = read_json(settings())
    config = config if isinstance(config, dict) else {}
    if is_alone:
        base = config.get("base_model_name_or_path")
        raise CheckpointError(
            f"{model} is an adapter of {base!r}, no whole model; merge it (pip install peft) and convert the "
            f"result: {_merge_alone(model, base, config)}"
        )
    raise CheckpointError(
        f"{model} holds an adapter ({stored[0]}) beside weights, and transformers loads both; remove its "
        f"adapter files if it is merged already, otherwise merge it (pip install peft): "
        f"{_merge_beside(model, config)}"
    )


def _merge_alone(model: str, base: Any, config: dict[str, Any]) -> str:
    """Return a command that merges an adapter into the model that it names."""
    out = f"{Path(model).name}-merged"
    auto = f"AutoPeftModel{_TASKS.get(str(config.get('task_type')), '')}"
    return _python(
        f"import peft, transformers; m = peft.{auto}.from_pretrained({_text(model)}).merge_and_unload(); "
        f"m.save_pretrained({_text(out)}); "
        f"transformers.AutoTokenizer.from_pretrained({_text(str(base))}).save_pretrained({_text(out)})"
    )


def _merge_beside(model: str, config: dict[str, Any]) -> str:
    """Return commands that part an adapter from the weights beside it and merge it into them."""
    adapter, out = f"{Path(model).name}-adapter", f"{Path(model).name}-merged"
    auto = f"AutoModel{_TASKS.get(str(config.get('task_type')), '')}"
    where = model if Path(model).is_dir() else Path(model).name
    fetch = [] if Path(model).is_dir() else [f"hf download {model} --local-dir {where}"]
    moved = f"{shlex.quote(where)}/adapter_* {shlex.quote(adapter)}"
    merge = _python(
        f"import peft, transformers; m = transformers.{auto}.from_pretrained({_text(where)}); "
        f"peft.PeftModel.from_pretrained(m, {_text(adapter)}).merge_and_unload()"
        f".save_pretrained({_text(out)}); "
        f"transformers.AutoTokenizer.from_pretrained({_text(where)}).save_pretrained({_text(out)})"
    )
    return " && ".join([*fetch, f"mkdir {shlex.quote(adapter)}", f"mv {moved}", merge])


def _python(code: str) -> str:
    return f"python -c {shlex.quote(code)}"


def _text(value: str) -> str:
    return json.dumps(value)
