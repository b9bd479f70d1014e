"""Hub ids, against a server on this machine that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import sentence_models
from hub_server import TOKEN, HubState, running_hub, use_hub
from typer.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubState]:
    """A Hub that holds the tiny Llama as ``owner/model``."""
    (llama / "pytorch_model.bin").write_bytes(b"never fetched")
    (llama / "modeling_evil.py").write_text("raise SystemExit")
    with running_hub() as state:
        state.add("owner/model", llama)
        state.add("owner/gated", gated=True)
        use_hub(state, tmp_path / "cache", monkeypatch)
        monkeypatch.chdir(tmp_path)
        yield state


def test_inspect_reads_headers_over_the_network_and_no_weights(
    hub: HubState, llama: Path, gqkva: Run
) -> None:
    """Looking at a 140 GB model must not cost a 140 GB download."""
    remote = gqkva("inspect", "owner/model", "--json")
    assert remote.exit_code == 0, remote.output
    local = json.loads(gqkva("inspect", llama, "--json").stdout)
    found = json.loads(remote.stdout)
    assert {**found, "model": None} == {**local, "model": None}
    assert "pytorch_model.bin" not in hub.sent
    assert "modeling_evil.py" not in hub.sent


def test_convert_fetches_what_it_needs_and_records_the_commit(
    hub: HubState, llama: Path, tmp_path: Path, gqkva: Run
) -> None:
    """A report must say which revision was converted, with the checksums the Hub states."""
    result = gqkva("convert", "owner/model", "--gkv", "2", "--revision", "main")
    assert result.exit_code == 0, result.output
    out = tmp_path / "model-gqa-2"
    report = json.loads((out / "gqkva_report.json").read_text())
    assert report["source"]["revision"] == hub.repositories["owner/model"].refs["main"]
    for name, entry in report["source"]["files"].items():
        assert entry["sha256"] == hashlib.sha256((llama / name).read_bytes()).hexdigest()
    assert not {"pytorch_model.bin", "modeling_evil.py"} & hub.sent.keys()
    assert not list(out.glob("*.py"))
    assert TOKEN not in result.output + (out / "gqkva_report.json").read_text()
    assert gqkva("verify", out, "--against", "owner/model").exit_code == 0


@pytest.mark.parametrize(("name", "words"), [("owner/absent", "no Hub model"), ("owner/gated", "gated")])
def test_a_model_the_hub_does_not_give_is_one_line(name: str, words: str, hub: HubState, gqkva: Run) -> None:
    """A misspelt name and a licence not yet accepted are the two usual reasons."""
    for command in (["inspect", name], ["convert", name, "--gkv", "2"]):
        result = gqkva(*command)
        assert result.exit_code == 8, result.output
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert TOKEN not in result.stderr


@pytest.mark.parametrize("how", ["offline", pytest.param("unreachable", marks=pytest.mark.slow)])
def test_without_a_network_the_reason_is_named(how: str, gqkva: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters often have no route to the Hub."""
    if how == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    result = gqkva("convert", "owner/never-cached", "--gkv", "2")
    assert result.exit_code == 8, result.exception
    assert "error: owner/never-cached is no folder here" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_what_can_be_refused_is_refused_before_the_download(hub: HubState, gqkva: Run) -> None:
    """A wrong number of heads must not cost a 140 GB download first."""
    result = gqkva("convert", "owner/model", "--gkv", "4")
    assert result.exit_code == 2
    assert "choose one of [1, 2, 3, 6]" in result.stderr
    assert "config.json" in hub.sent
    assert "generation_config.json" not in hub.sent, "the model was downloaded before it was refused"


def test_the_weights_of_modules_are_fetched_and_no_others(hub: HubState, tmp_path: Path, gqkva: Run) -> None:
    """Without its dense layer an embedding model of the Hub does not load."""
    folder = sentence_models.save(tmp_path / "sentences", pickled=True)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.bin").write_bytes(b"never fetched")
    hub.add("owner/sentences", folder)
    result = gqkva("convert", "owner/sentences", "--gkv", "2", "--revision", "main")
    assert result.exit_code == 0, result.output
    name = "2_Dense/pytorch_model.bin"
    assert (tmp_path / "sentences-gqa-2" / name).read_bytes() == (folder / name).read_bytes()
    assert "onnx/model.bin" not in hub.sent


@pytest.mark.parametrize("is_alone", [True, False])
def test_an_adapter_on_the_hub_is_refused_before_the_download(
    is_alone: bool, hub: HubState, llama: Path, tmp_path: Path, gqkva: Run
) -> None:
    """Most fine-tuned models there are adapters; the base model may be 140 GB."""
    folder = tmp_path / "tuned"
    folder.mkdir()
    if not is_alone:
        shutil.copytree(llama, folder, dirs_exist_ok=True)
    settings = {"task_type": "CAUSAL_LM", "base_model_name_or_path": "owner/model"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").write_bytes(b"never fetched")
    hub.add("owner/tuned", folder)
    for command in (["inspect", "owner/tuned"], ["convert", "owner/tuned", "--gkv", "2"]):
        result = gqkva(*command)
        assert result.exit_code == 3, result.output
        assert "AutoModelForCausalLM" in result.stderr or "AutoPeftModelForCausalLM" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not {"adapter_model.safetensors", "model.safetensors"} & hub.sent.keys()


@pytest.mark.parametrize("name", ["foo--bar", "my..model", "x" * 97])
def test_a_misspelt_folder_that_no_hub_id_can_be_is_one_line(name: str, gqkva: Run) -> None:
    """The Hub's own validator raises; the user only mistyped a path."""
    result = gqkva("inspect", name)
    assert result.exit_code == 8, result.exception
    assert "no possible Hub id" in result.stderr


def test_a_cached_model_needs_no_network(hub: HubState, gqkva: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute nodes often have the cache and no route to the Hub."""
    commit = hub.repositories["owner/model"].refs["main"]
    assert gqkva("convert", "owner/model", "first", "--gkv", "2", "--revision", commit).exit_code == 0
    inspected = gqkva("inspect", "owner/model", "--revision", commit, "--json").stdout
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    result = gqkva("convert", "owner/model", "second", "--gkv", "2", "--revision", commit)
    assert result.exit_code == 0, result.output
    result = gqkva("inspect", "owner/model", "--revision", commit, "--json")
    assert (result.exit_code, result.stdout) == (0, inspected)


def test_weights_that_the_configuration_names_are_fetched(hub: HubState, llama: Path, gqkva: Run) -> None:
    """Those of the usual name may be another model's."""
    from safetensors.torch import load_file, save_file

    tensors = {
        name: tensor for path in llama.glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    save_file(tensors, llama / "mine.safetensors", metadata={"format": "pt"})
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"transformers_weights": "mine.safetensors"}))
    hub.add("owner/named", llama)
    result = gqkva("inspect", "owner/named")
    assert (result.exit_code, result.stderr.count("\n")) == (8, 1), result.output
    assert "config.json names mine.safetensors as the weights" in result.stderr
    assert gqkva("convert", "owner/named", "out", "--gkv", "2").exit_code == 0
    assert {name for name in hub.sent if name.endswith(".safetensors")} == {"mine.safetensors"}
    assert gqkva("inspect", "out").exit_code == 0


def test_a_model_of_wrong_shapes_is_refused_before_the_download(
    hub: HubState, llama: Path, gqkva: Run
) -> None:
    """Headers alone tell that its tensors would not load."""
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    hub.add("owner/other", llama)
    result = gqkva("convert", "owner/other", "out", "--gkv", "2")
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1), result.output
    assert "has the shape [37, 30], by config.json LlamaForCausalLM takes [99, 30]" in result.stderr
    assert "generation_config.json" not in hub.sent


def test_a_tokenizer_that_is_a_page_on_the_hub_is_named(hub: HubState, llama: Path, gqkva: Run) -> None:
    """Somebody has uploaded the failed download."""
    (llama / "tokenizer.json").write_text("<!doctype html><title>Sign in</title>")
    hub.add("owner/page", llama)
    result = gqkva("convert", "owner/page", "out", "--gkv", "2")
    assert (result.exit_code, result.stderr.count("error: ")) == (3, 1), result.output
    assert "tokenizer.json is a web page" in result.stderr
