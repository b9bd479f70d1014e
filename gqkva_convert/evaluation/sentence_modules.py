"""What a sentence-transformers model does with a pooled embedding: dense layers and norms, in their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.modules import MODULES, Module, read_modules
from gqkva_convert.checkpoint.pickled import load_pickled
from gqkva_convert.errors import EvaluationError

# Activations of dense layers, all in ``torch.nn``.
_ACTIVATIONS = ("Tanh", "Identity", "ReLU", "GELU", "Sigmoid", "SiLU")
_SENTENCE = "sentence_embedding"


def after_pooling(folder: Path) -> Callable[[Any], Any]:
    """Return the function that a folder's modules apply to pooled embeddings ``(texts, width)``.

    Raises:
        EvaluationError: A module is not measured here: its result would be another embedding.
    """
    import torch

    layers = [_layer(folder, module) for module in _modules_after(folder)]

    def apply(embeddings: Any) -> Any:
        with torch.inference_mode():
            for layer in layers:
                embeddings = layer(embeddings)
        return embeddings

    return apply


def _modules_after(folder: Path) -> tuple[Module, ...]:
    modules = read_modules(folder)
    kinds = [module.kind for module in modules]
    if kinds and kinds[:2] != ["Transformer", "Pooling"]:
        raise EvaluationError(
            f"{folder / MODULES}: the modules {', '.join(kinds)} are not measured; a Transformer followed "
            "by a Pooling is"
        )
    return modules[2:]


def _layer(folder: Path, module: Module) -> Callable[[Any], Any]:
    import torch.nn.functional as functional

    if module.kind == "Normalize":
        return lambda embeddings: functional.normalize(embeddings, dim=-1)
    if module.kind == "Dense":
        return _dense(folder / module.path)
    raise EvaluationError(
        f"{folder / MODULES}: the module {module.kind} is not measured here; Pooling, Dense and Normalize are"
    )


def _dense(folder: Path) -> Callable[[Any], Any]:
    """Return a dense layer and its activation, in float32."""
    import torch
    from safetensors.torch import load_file

    path = folder / "config.json"
    config = read_json(path)
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    features = {config.get(key, _SENTENCE) for key in ("module_input_name", "module_output_name")}
    if activation not in _ACTIVATIONS or features - {_SENTENCE, None}:
        raise EvaluationError(f"{path}: a dense layer of {activation} on {', '.join(map(str, features))}")
    stored = folder / "model.safetensors"
    weights = load_file(stored) if stored.is_file() else load_pickled(folder / "pytorch_model.bin")
    weight, bias = weights["linear.weight"].float(), weights.get("linear.bias")
    act = getattr(torch.nn, activation)()

    def apply(embeddings: Any) -> Any:
        place = embeddings.device
        shift = None if bias is None else bias.float().to(place)
        return act(torch.nn.functional.linear(embeddings, weight.to(place), shift))

    return apply
