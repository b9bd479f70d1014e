"""Which checkpoints transformers would load whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
from safetensors.torch import load_file, save_file

from gqkva_convert.architectures import FAMILIES
from gqkva_convert.errors import CheckpointError, FamilyError
from gqkva_convert.source.model import open_model
from gqkva_convert.source.stock import require_loadable


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_loads_whole_and_no_tensor_may_change(
    model_type: str, tiny: Callable[[str], Path]
) -> None:
    """The check is transformers' own loading, of the stored shapes; each tensor of another size shows."""
    model = open_model(tiny(model_type))
    checkpoint = model.checkpoint
    require_loadable(checkpoint, model.family)
    for name in list(checkpoint.tensors)[:: max(1, len(checkpoint.tensors) // 5)]:
        tensor = checkpoint.tensors[name]
        longer = replace(tensor, shape=(*tensor.shape[:-1], tensor.shape[-1] + 1) if tensor.shape else (2,))
        changed = replace(checkpoint, tensors={**checkpoint.tensors, name: longer})
        with pytest.raises(CheckpointError, match="has the shape"):
            require_loadable(changed, model.family)


@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt2", "t5", "clip", "whisper"])
def test_a_tensor_that_is_missing_is_named(model_type: str, tiny: Callable[[str], Path]) -> None:
    """Stock loading would warn, draw random values, and answer nonsense."""
    model = open_model(tiny(model_type))
    norm = next(name for name in model.checkpoint.tensors if "norm" in name.lower() or ".ln_" in name)
    tensors = {name: tensor for name, tensor in model.checkpoint.tensors.items() if name != norm}
    with pytest.raises(CheckpointError, match="is missing: no file holds it"):
        require_loadable(replace(model.checkpoint, tensors=tensors), model.family)


def test_a_head_may_be_absent_as_a_whole_but_not_in_part(tiny: Callable[[str], Path]) -> None:
    """Folders without the head that their configuration names hold the model below it."""
    model = open_model(tiny("bert"))
    heads = [name for name in model.checkpoint.tensors if name.startswith("cls.")]
    without = {name: tensor for name, tensor in model.checkpoint.tensors.items() if name not in heads}
    require_loadable(replace(model.checkpoint, tensors=without), model.family)
    partly = without | {heads[0]: model.checkpoint.tensors[heads[0]]}
    with pytest.raises(CheckpointError, match=r"'cls\.\S+ is missing"):
        require_loadable(replace(model.checkpoint, tensors=partly), model.family)
    missing = {"cls.predictions.transform.dense.weight": "model-00002.safetensors"}
    named = replace(model.checkpoint, tensors=without, absent=missing)
    with pytest.raises(CheckpointError, match=r"it is not in model-00002.safetensors, as the index says"):
        require_loadable(named, model.family)


def test_old_names_of_norms_are_those_that_transformers_renames(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """The first BERTs call a norm's tensors gamma and beta."""
    folder = shutil.copytree(tiny("bert"), tmp_path / "bert")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for new, before in old.items():
            name = name.replace(new, before)
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = open_model(folder)
    require_loadable(model.checkpoint, model.family)
    name = "bert.embeddings.LayerNorm.gamma"
    wrong = replace(model.checkpoint.tensors[name], shape=(31,))
    changed = replace(model.checkpoint, tensors={**model.checkpoint.tensors, name: wrong})
    with pytest.raises(
        CheckpointError, match=r"has the shape \[31\], by config.json BertForMaskedLM takes \[30\]"
    ):
        require_loadable(changed, model.family)


def test_a_tied_copy_may_be_absent_and_an_untied_one_not(tmp_path: Path) -> None:
    """Whether a head is tied is what the configuration says."""
    for tied in (True, False):
        built = tiny_models.build("llama", "LlamaForCausalLM", tie_word_embeddings=True)
        folder = tiny_models.save(built, tmp_path / str(tied))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
        model = open_model(folder)
        checkpoint = replace(model.checkpoint, absent={"lm_head.weight": "model-00002.safetensors"})
        if tied:
            require_loadable(checkpoint, model.family)
        else:
            with pytest.raises(CheckpointError, match=r"'lm_head.weight' is missing"):
                require_loadable(checkpoint, model.family)


def test_no_weight_is_read_or_made(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A model of 1.5 million billion parameters is checked in the memory of its names."""
    folder = shutil.copytree(tiny("llama"), tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 2**44}))
    model = open_model(folder)
    (folder / "model.safetensors").unlink()
    tensors = {
        name: replace(tensor, shape=(2**44, 30)) if tensor.shape == (37, 30) else tensor
        for name, tensor in model.checkpoint.tensors.items()
    }
    require_loadable(replace(model.checkpoint, tensors=tensors), model.family)


def test_a_configuration_that_transformers_refuses_is_refused_with_its_words(
    tiny: Callable[[str], Path],
) -> None:
    """One line, not a traceback."""
    model = open_model(tiny("llama"))
    for changes, words in (
        ({"rope_parameters": {"rope_type": "yarn"}}, "transformers refuses this configuration: .*factor"),
        ({"rope_parameters": {"rope_type": "mrope"}}, "'mrope' are not known to transformers"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "kind \\[.yarn.\\] are not known to transformers"),
        ({"hidden_act": "gelu_of_mine"}, "transformers cannot build a LlamaForCausalLM"),
    ):
        checkpoint = replace(model.checkpoint, config={**model.config, **changes})
        with pytest.raises(FamilyError, match=words):
            require_loadable(checkpoint, model.family)
