"""Exports answer the same in runtimes that know nothing of us: CTranslate2, ONNX Runtime and vLLM.

``pip install -c constraints.txt -e '.[test,runtimes]' && pytest -m slow tests/conversion/test_runtimes.py``;
vLLM wants other versions of much, so it is run by a Python of its own, which ``GQKVA_VLLM_PYTHON`` names;
llama.cpp has ``tests/runtimes/test_llama_cpp.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import vllm_answers
from grouped_pairs import write_pair

import gqkva_convert
from gqkva_convert import export
from gqkva_convert.architectures import FAMILIES
from gqkva_convert.modeling.loading import load_model

pytestmark = pytest.mark.slow

MODEL = Path(gqkva_convert.__file__).parent / "demo_model" / "checkpoint"


@pytest.fixture(scope="module", params=["unequal", "GQKVA", "mixed"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in a layout that only we run, exported."""
    folder = tmp_path_factory.mktemp("runtimes")
    grouped, _ = write_pair(MODEL, request.param, folder)
    for file in MODEL.glob("tokenizer*"):
        shutil.copy(file, grouped)
    settings = json.loads((grouped / "tokenizer_config.json").read_text())
    # CTranslate2 reads Mistral models with a token for unknown words only.
    settings["unk_token"] = settings["eos_token"]
    (grouped / "tokenizer_config.json").write_text(json.dumps(settings))
    return export(grouped, folder / "out")


def tokens_and_logits(exported: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the grouped model, before the export, says."""
    tokens = torch.randint(4096, (1, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = load_model(exported.parent / "grouped", "")(tokens).logits
    return tokens, logits


def test_the_types_are_those_that_the_records_state(exported: Path) -> None:
    """Documentation and model cards name these runtimes for models of these types."""
    model_type = json.loads((exported / "config.json").read_text())["model_type"]
    assert FAMILIES[model_type].compared_in == ("CTranslate2", "ONNX Runtime", "vLLM")


def test_ctranslate2(exported: Path, tmp_path: Path) -> None:
    """Its converter reads the stock configuration: heads, key/value heads and head_dim."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    vocabulary = json.loads((exported / "tokenizer.json").read_text())["model"]["vocab"]
    words = {number: word for word, number in vocabulary.items()}
    tokens, logits = tokens_and_logits(exported)
    ctranslate2.converters.TransformersConverter(str(exported)).convert(str(tmp_path / "ct2"))
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), compute_type="float32")
    found = np.array(generator.forward_batch([[words[number] for number in tokens[0].tolist()]]))
    assert np.abs(found - logits.numpy()).max() < 1e-4 * np.abs(logits.numpy()).max()


def test_onnx_runtime(exported: Path, tmp_path: Path) -> None:
    """The graph that torch exports of the stock model."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = load_model(exported, "")

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
            return logits

    tokens, logits = tokens_and_logits(exported)
    torch.onnx.export(Logits().eval(), (tokens,), str(tmp_path / "model.onnx"), dynamo=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
    assert np.abs(found - logits.numpy()).max() < 1e-4 * np.abs(logits.numpy()).max()


def test_vllm(exported: Path, tmp_path: Path) -> None:
    """Prompts of several lengths, side by side, go on with the tokens that the grouped model likes best."""
    python = os.environ.get("GQKVA_VLLM_PYTHON")
    if not python:
        pytest.skip("GQKVA_VLLM_PYTHON does not name a Python with vLLM")
    answers = tmp_path / "answers.json"
    command = [python, vllm_answers.__file__, str(exported), str(answers)]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    model = load_model(exported.parent / "grouped", "")
    for prompt, answer in zip(vllm_answers.PROMPTS, json.loads(answers.read_text()), strict=True):
        tokens = torch.tensor([prompt + answer["tokens"]])
        with torch.inference_mode():
            likely = model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert likely.argmax(-1).tolist() == answer["tokens"]
        assert likely.max(-1).values.tolist() == pytest.approx(answer["logprobs"], abs=1e-3)
