"""Real published checkpoints of old versions of transformers through the whole command line."""

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

# BERTs for chemical reactions, of 2019 and under the MIT licence: pickles from before PyTorch 1.6, saved on a
# GPU. Two of their configurations name neither class nor model type.
BERTS = "rxnfp==0.1.0"
BERTS_SHA256 = "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf"
BERTS_FOLDER = "rxnfp/models/transformers"


def download(package: str, sha256: str, cache: Path) -> Path:
    """Return the wheel of a package; skips the test where the package index does not give it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), package]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (subprocess.SubprocessError, OSError) as error:
        reason = getattr(error, "stderr", None) or str(error).encode()
        pytest.skip(f"{package} is not to be had from the package index: {reason.decode().strip()[-200:]}")
    (wheel,) = cache.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == sha256
    return wheel


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as it was published, and a tokenizer of its vocabulary."""
    cache = tmp_path_factory.mktemp("published")
    wheel = download(PACKAGE, SHA256, cache)
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


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints as they were published, in folders of their own."""
    cache = tmp_path_factory.mktemp("berts")
    with zipfile.ZipFile(download(BERTS, BERTS_SHA256, cache)) as archive:
        for name in archive.namelist():
            if name.startswith(BERTS_FOLDER) and not name.endswith(("training_args.bin", "scheduler.pt")):
                archive.extract(name, cache)
    return cache / BERTS_FOLDER


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("bert_pretrained", "BertForMaskedLM"),
        ("bert_ft", "BertModel"),
        ("bert_ft_10k_25s", "BertForSequenceClassification"),
    ],
)
def test_berts_of_2019_go_the_whole_way(
    name: str, architecture: str, berts: Path, tmp_path: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in two of the folders says which class they are of; heads of pre-training are kept."""
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "gqkva"))
    folder, out, trained = shutil.copytree(berts / name, tmp_path / name), tmp_path / "gqa", tmp_path / "new"
    config = json.loads((folder / "config.json").read_text())
    if "model_type" not in config:
        refused = gqkva("inspect", folder)
        assert refused.exit_code == 3
        assert 'add the model\'s, such as "model_type": "bert"' in refused.stderr
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    facts = json.loads(done(gqkva("inspect", folder, "--json")).stdout)
    assert facts["architecture"] == architecture
    whole = "BertForPreTraining" if name == "bert_pretrained" else architecture
    assert (
        facts["parameters"]["total"] == getattr(transformers, whole).from_pretrained(folder).num_parameters()
    )
    done(gqkva("convert", folder, out, "--gkv", 2))
    done(gqkva("verify", out, "--against", folder))
    reaction = "C C O . C C ( = O ) O >> C C O C ( C ) = O"
    rows = [{"text": f"{reaction} {end}", "label": 0} for end in "CNO" * 8]
    data = tmp_path / "reactions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured = ("--data", data, "--length", 48, "--samples", 4, "--json")
    (same,) = json.loads(done(gqkva("evaluate", folder, "--against", folder, *measured)).stdout)
    found = {each["metric"]: each["value"] for each in same["metrics"]}
    assert found.get("KL from the original", 0) == pytest.approx(0, abs=1e-6)
    assert found.get("cosine with the original", 1) == pytest.approx(1, abs=1e-6)
    step = ("--data", data, "--length", 48, "--tokens", 8 * 48, "--batch-size", 4, "--set", "held_out_rows=4")
    result = gqkva("uptrain", out, trained, "--teacher", folder, *step)
    if name == "bert_ft_10k_25s":
        assert result.exit_code == 12
        assert "cannot be trained here" in result.stderr
        return
    done(result)
    done(gqkva("verify", trained, "--against", folder))
    assert load_file(trained / SAFETENSORS).keys() == load_file(out / SAFETENSORS).keys()
    refused = gqkva("export", trained, tmp_path / "file", "--runtime", "gguf")
    assert refused.exit_code == 5
    assert "does not write bert models" in refused.stderr
