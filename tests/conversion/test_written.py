"""verify must load what was written as its users do: with tokenizer and modules, and no stray adapter."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import sentence_models
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import Result

from gqkva_convert.modeling.loading import load_model

Run = Callable[..., Result]


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes a key away."""
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def refused(result: Result, exit_code: int, *words: str) -> None:
    assert result.exit_code == exit_code, result.output
    said = result.stderr.strip().splitlines()
    (line,) = [line for line in said if not line.startswith("note: ")]
    assert line.startswith("error: ")
    for word in words:
        assert word in line, line


def add_adapter(folder: Path, ending: str = "safetensors") -> None:
    """Put the files of a LoRA adapter into a folder."""
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "owner/base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    weights = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 30)}
    if ending == "bin":
        torch.save(weights, folder / "adapter_model.bin")
    else:
        save_file(weights, folder / "adapter_model.safetensors")


# Adapters.


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_an_adapter_beside_weights_stops_every_command(ending: str, llama: Path, gqkva: Run) -> None:
    """Transformers loads it on top of the weights; merged heads would have an adapter for the old ones."""
    add_adapter(llama, ending)
    out = llama.parent / "out"
    for arguments in (
        ["convert", llama, out, "--gkv", 2],
        ["plan", llama, "--gkv", 2],
        ["inspect", llama],
        ["export", llama, out],
        ["evaluate", llama, "--data", llama],
        ["uptrain", llama, out, "--data", llama, "--samples", 8],
        ["push", llama, "me/model"],
    ):
        refused(gqkva(*arguments), 3, "holds an adapter", f"adapter_model.{ending}", "merge_and_unload")
    assert not out.exists()


def test_an_adapter_alone_is_named_with_the_command_that_merges_it(tmp_path: Path, gqkva: Run) -> None:
    """Most fine-tuned models on the Hub are published so."""
    folder = tmp_path / "tuned"
    folder.mkdir()
    add_adapter(folder)
    for command in (["inspect", folder], ["convert", folder, tmp_path / "out", "--gkv", 2]):
        refused(gqkva(*command), 3, "an adapter of 'owner/base'", "AutoPeftModelForCausalLM", "tuned-merged")


def test_a_stale_adapter_configuration_is_left_behind_with_a_note(llama: Path, gqkva: Run) -> None:
    """Merging tools leave it in the folder; with PEFT installed, transformers then wants its weights."""
    add_adapter(llama)
    (llama / "adapter_model.safetensors").unlink()
    out = llama.parent / "out"
    result = gqkva("convert", llama, out, "--gkv", 2)
    assert result.exit_code == 0, result.output
    assert "left behind: adapter_config.json" in result.stderr
    assert not (out / "adapter_config.json").exists()
    assert gqkva("verify", out, "--against", llama).exit_code == 0
    transformers.AutoModelForCausalLM.from_pretrained(out)
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23):
        pytest.skip("an older transformers looks for an adapter beside the weights, whatever it is told")
    load_model(llama, "LlamaForCausalLM")  # as evaluation, training and benchmarks do with the source


def test_an_adapter_put_into_an_output_fails_its_proof(llama: Path, gqkva: Run) -> None:
    """Then the folder loads something else than what was proven."""
    out = llama.parent / "out"
    assert gqkva("convert", llama, out, "--gkv", 2).exit_code == 0
    add_adapter(out)
    (out / "adapter_model.safetensors").unlink()
    result = gqkva("verify", out)
    assert result.exit_code == 9
    assert "adapter_config.json" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("place", ["alone", "beside"])
def test_the_printed_command_merges_the_adapter(place: str, llama: Path, gqkva: Run) -> None:
    """Advice that does not run is worse than none."""
    peft = pytest.importorskip("peft")
    vocabulary = {word: number for number, word in enumerate(sentence_models.WORDS)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(llama)
    settings = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(llama), settings)
    tokens = torch.arange(9)[None]
    wanted = tuned(tokens).logits
    folder = llama.parent / "tuned"
    tuned.save_pretrained(folder)
    if place == "beside":
        for file in llama.iterdir():
            shutil.copy(file, folder)
    line = gqkva("inspect", folder).stderr
    command = line[re.search(r"python -c|mkdir ", line).start() :].strip()  # type: ignore[union-attr]
    command = command.replace("python -c", f"{sys.executable} -c")
    subprocess.run(command, shell=True, cwd=llama.parent, check=True, capture_output=True)
    merged = transformers.AutoModelForCausalLM.from_pretrained(llama.parent / "tuned-merged")
    torch.testing.assert_close(merged(tokens).logits, wanted, rtol=1e-4, atol=1e-4)


# Modules of sentence-transformers.


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_modules_keep_their_weights_and_are_proven(pickled: bool, tmp_path: Path, gqkva: Run) -> None:
    """Without its dense layer an embedding model answers in another space, or does not load."""
    library = pytest.importorskip("sentence_transformers")
    source, out = sentence_models.save(tmp_path / "source", pickled=pickled), tmp_path / "out"
    assert gqkva("convert", source, out, "--gkv", 2).exit_code == 0
    name = "2_Dense/pytorch_model.bin" if pickled else "2_Dense/model.safetensors"
    assert (out / name).read_bytes() == (source / name).read_bytes()
    result = gqkva("verify", out, "--against", source, "--json")
    assert result.exit_code == 0, result.output
    found = {check["check"]: check["detail"] for check in json.loads(result.stdout)["checks"]}
    assert "Transformer, Pooling, Dense, Normalize" in found["sentence-transformers"]
    assert "gives what the source gives" in found["tokenizer"]
    made = library.SentenceTransformer(str(out), device="cpu").encode(["the quick fox"])
    assert made.shape == (1, sentence_models.FEATURES)


def test_lost_and_changed_modules_fail_the_proof(tmp_path: Path, gqkva: Run) -> None:
    """They are part of the function, and of what a push sends."""
    pytest.importorskip("sentence_transformers")
    source, out = sentence_models.save(tmp_path / "source"), tmp_path / "out"
    assert gqkva("convert", source, out, "--gkv", 2).exit_code == 0
    stored = out / "2_Dense" / "model.safetensors"
    weights = load_file(stored)
    save_file({**weights, "linear.bias": weights["linear.bias"] + 1}, stored)
    result = gqkva("verify", out, "--against", source)
    assert result.exit_code == 9
    assert "sentence-transformers: embeddings differ" in result.stderr
    (out / "modules.json").unlink()
    result = gqkva("verify", out, "--against", source)
    assert "the source has modules.json" in result.stderr


def test_without_the_library_the_proof_says_so(
    tmp_path: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that was not made must not look like one that passed."""
    source, out = sentence_models.save(tmp_path / "source"), tmp_path / "out"
    assert gqkva("convert", source, out, "--gkv", 2).exit_code == 0
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    result = gqkva("verify", out)
    assert result.exit_code == 0
    assert "not checked: sentence-transformers is not installed" in " ".join(result.stdout.split())


def test_modules_follow_training_and_export(tmp_path: Path, gqkva: Run) -> None:
    """Both keep the space of the transformer's hidden states, which the dense layer reads."""
    source, out = sentence_models.save(tmp_path / "source"), tmp_path / "out"
    texts = tmp_path / "texts.jsonl"
    lines = [" ".join(sentence_models.WORDS[5 + (n + k) % 7] for k in range(5)) for n in range(40)]
    texts.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    assert gqkva("convert", source, out, "--gkv", 2).exit_code == 0
    trained, stock = tmp_path / "trained", tmp_path / "stock"
    options = ["--data", texts, "--samples", 8, "--batch-size", 8, "--teacher", source]
    for arguments in (["uptrain", out, trained, *options], ["export", out, stock]):
        result = gqkva(*arguments)
        assert result.exit_code == 0, result.output
    wanted = (source / "2_Dense" / "model.safetensors").read_bytes()
    assert {(f / "2_Dense" / "model.safetensors").read_bytes() for f in (trained, stock)} == {wanted}


def test_an_evaluation_goes_through_the_modules(tmp_path: Path, gqkva: Run) -> None:
    """A dense layer changes every cosine: figures without it are another model's."""
    library = pytest.importorskip("sentence_transformers")
    source = sentence_models.save(tmp_path / "source")
    words = sentence_models.WORDS[5:]
    pairs = [
        (f"the {words[n % 7]} {words[n % 5]}", f"{words[n % 3]} lazy {words[n % 4]}", (n % 10) / 10)
        for n in range(20)
    ]
    data = tmp_path / "pairs.jsonl"
    rows = [dict(zip(("sentence1", "sentence2", "score"), pair, strict=True)) for pair in pairs]
    data.write_text("\n".join(map(json.dumps, rows)))
    result = gqkva("evaluate", source, "--data", data, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    from gqkva_convert.evaluation.metrics import spearman

    model = library.SentenceTransformer(str(source), device="cpu")
    first, second = (
        model.encode([pair[side] for pair in pairs], normalize_embeddings=True) for side in (0, 1)
    )
    wanted = spearman((first * second).sum(-1), numpy.asarray([pair[2] for pair in pairs]), axis=-1)
    assert json.loads(result.stdout)[0]["metrics"][0]["value"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", ["LayerNorm", "WordWeights"])
def test_a_module_that_is_not_measured_is_refused(kind: str, tmp_path: Path, gqkva: Run) -> None:
    """Passing over it would measure another embedding."""
    source = sentence_models.save(tmp_path / "source")
    modules = json.loads((source / "modules.json").read_text())
    modules[2]["type"] = f"sentence_transformers.models.{kind}"
    (source / "modules.json").write_text(json.dumps(modules))
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"sentence1": "the fox", "sentence2": "the fox", "score": 0.5}\n')
    refused(gqkva("evaluate", source, "--data", data, "--device", "cpu"), 13, kind)


def test_modules_of_their_own_code_or_weights_elsewhere_are_refused(tmp_path: Path, gqkva: Run) -> None:
    """Their code is not carried; a transformer in a subfolder would be loaded, and is not converted."""
    source, out = sentence_models.save(tmp_path / "source"), tmp_path / "out"
    text = (source / "modules.json").read_text()
    (source / "modules.json").write_text(
        text.replace("sentence_transformers.models.Dense", "custom_st.Dense")
    )
    refused(gqkva("convert", source, out, "--gkv", 2), 4, "custom_st.Dense", "modules.json")
    (source / "modules.json").write_text(text.replace('"path": ""', '"path": "0_Transformer"'))
    inner = source / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, inner)
    refused(gqkva("convert", source, out, "--gkv", 2), 4, "0_Transformer", "convert")
    (source / "config.json").unlink()
    refused(gqkva("convert", source, out, "--gkv", 2), 3, f"give {inner}")
    (source / "modules.json").write_text(text.replace('"path": ""', '"path": "../elsewhere"'))
    refused(gqkva("convert", source, out, "--gkv", 2), 3, "outside the folder")


def test_a_pickle_of_a_module_that_holds_code_is_never_loaded(tmp_path: Path, gqkva: Run) -> None:
    """It is carried as it is, and no program of ours opens it."""
    pytest.importorskip("sentence_transformers")
    source, out = sentence_models.save(tmp_path / "source", pickled=True), tmp_path / "out"
    torch.save({"linear.weight": Path}, source / "2_Dense" / "pytorch_model.bin")
    assert gqkva("convert", source, out, "--gkv", 2).exit_code == 0
    result = gqkva("verify", out)
    assert result.exit_code == 9
    assert "holds more than tensors" in result.stderr


# Code and keys that transformers does not honour.


@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("qwen2", {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}, ["modeling_qwen.Qwen2Model"]),
        ("llama", {"auto_map": {"AutoConfig": "owner/repo--configuration_x.XConfig"}}, ["AutoConfig"]),
        ("bert", {"auto_map": "modeling_x.X"}, ["auto_map"]),
        (
            "phi3",
            {"auto_map": {"AutoModel": "modeling_phi3_fast.Phi3Model"}},
            ["modeling_phi3_fast.Phi3Model"],
        ),
        ("llama", {"architectures": ["BidirectionalLlama"]}, ["BidirectionalLlama", "LlamaForCausalLM"]),
        ("bert", {"architectures": ["BertForSentences"]}, ["BertForSentences"]),
        ("llama", {"is_causal": False}, ["is_causal"]),
        ("gpt2", {"causal": False}, ["causal"]),
        ("llama", {"bidirectional": True}, ["bidirectional"]),
        ("bert", {"is_causal": True}, ["is_causal"]),
        ("distilbert", {"is_decoder": True}, ["is_decoder"]),
        ("llama", {"use_rope": False}, ["use_rope"]),
        ("mistral", {"scale_attn_weights": False}, ["scale_attn_weights"]),
        ("llama", {"scale_attention": 0}, ["scale_attention"]),
    ],
)
def test_what_transformers_does_not_honour_stops_a_conversion(
    model_type: str,
    changes: dict[str, Any],
    words: list[str],
    tiny: Callable[[str], Path],
    tmp_path: Path,
    gqkva: Run,
) -> None:
    """Such folders run code of their own; converted as if stock, they are another model."""
    source, out = shutil.copytree(tiny(model_type), tmp_path / "source"), tmp_path / "out"
    edit(source / "config.json", **changes)
    for command in (["convert", source, out, "--gkv", 2], ["inspect", source]):
        refused(gqkva(*command), 4, "config.json", *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"is_causal": True, "use_rope": True, "is_decoder": True, "rope_interleaved": False}),
        ("bert", {"is_causal": False, "is_decoder": False, "use_rope": False}),
        ("vit", {"causal": False}),
        (
            "phi3",
            {
                "auto_map": {
                    "AutoConfig": "configuration_phi3.Phi3Config",
                    "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
                }
            },
        ),
        ("llama", {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}),
        ("llama", {"scale_attn_weights": True, "alibi": False, "qk_norm": None}),
    ],
)
def test_keys_that_say_what_the_family_does_stop_nothing(
    model_type: str, changes: dict[str, Any], tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """A refusal that names no danger teaches users to ignore it."""
    source = shutil.copytree(tiny(model_type), tmp_path / "source")
    edit(source / "config.json", **changes)
    assert gqkva("convert", source, tmp_path / "out", "--gkv", 2).exit_code == 0


def test_a_grouped_model_runs_no_other_code(tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run) -> None:
    """Its folder is loaded with remote code by those who trust what we wrote."""
    out = tmp_path / "out"
    assert gqkva("convert", tiny("bert"), out, "--gkv", 2).exit_code == 0
    edit(out / "config.json", auto_map={"AutoModel": "modeling_evil.GqkvaBertModel"})
    refused(gqkva("verify", out), 4, "modeling_evil")


# Tokenizers.


def test_a_tokenizer_class_in_the_configuration_is_kept(
    tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """The family's usual class would cut the same text into other tokens."""
    source, out = shutil.copytree(tiny("roberta"), tmp_path / "source"), tmp_path / "out"
    sentence_models.tokenizer(source)
    edit(source / "tokenizer_config.json", tokenizer_class=None)
    edit(source / "config.json", tokenizer_class="BertTokenizer")
    assert gqkva("convert", source, out, "--gkv", 2).exit_code == 0
    first, second = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, out))
    assert type(first) is type(second)
    assert first("the quick fox").input_ids == second("the quick fox").input_ids
    assert gqkva("verify", out, "--against", source).exit_code == 0
    edit(out / "tokenizer_config.json", tokenizer_class="RobertaTokenizer")
    result = gqkva("verify", out, "--against", source)
    assert result.exit_code == 9
    assert "tokenizer" in result.stderr


@pytest.mark.parametrize("model_type", ["mistral", "phi3", "qwen2", "olmo2", "stablelm"])
@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "GPT2Tokenizer", None])
def test_a_class_that_transformers_overrules_is_overruled_in_a_grouped_model(
    named: str | None, model_type: str, tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """Its model type is not in transformers' lists, so that the class must stand in its files."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    source, out = shutil.copytree(tiny(model_type), tmp_path / "source"), tmp_path / "out"
    words = {word: number for number, word in enumerate(["<unk>", "the", "fox", *"abcdefgh"])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(source)
    edit(source / "tokenizer_config.json", tokenizer_class=named)
    assert gqkva("convert", source, out, "--gq", 2).exit_code == 0
    try:
        first = transformers.AutoTokenizer.from_pretrained(source)
    except Exception:  # a class that cannot read these files; then there is nothing to keep
        return
    second = transformers.AutoTokenizer.from_pretrained(out)
    assert type(first) is type(second)
    assert first("the fox").input_ids == second("the fox").input_ids


def test_a_tokenizer_that_gives_tokens_the_model_lacks_fails_the_proof(
    tmp_path: Path, llama: Path, gqkva: Run
) -> None:
    """The first text would end in an index error, or on a GPU in a crash."""
    out = tmp_path / "out"
    vocabulary = {word: 90 + number for number, word in enumerate(sentence_models.WORDS)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(llama)
    assert gqkva("convert", llama, out, "--gkv", 2).exit_code == 0
    result = gqkva("verify", out)
    assert result.exit_code == 9
    assert "the model has 37" in result.stderr


def test_code_of_a_tokenizer_is_left_behind_with_a_note(llama: Path, gqkva: Run) -> None:
    """The result loads what the source loads without remote code, and the user hears of it."""
    sentence_models.tokenizer(llama)
    edit(llama / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})
    result = gqkva("convert", llama, llama.parent / "out", "--gkv", 2)
    assert result.exit_code == 0
    assert "left behind: auto_map of tokenizer_config.json" in result.stderr


# Large models.


def test_an_excerpt_carries_the_folders_other_files(tmp_path: Path, gqkva: Run) -> None:
    """A model too large to run whole is proven on some layers, its tokenizer and modules as they stand."""
    pytest.importorskip("sentence_transformers")
    source, out = sentence_models.save(tmp_path / "source"), tmp_path / "out"
    assert gqkva("convert", source, out, "--gkv", 2).exit_code == 0
    result = gqkva("verify", out, "--layers", 1, "--json")
    assert result.exit_code == 0, result.output
    found = {check["check"]: check["detail"] for check in json.loads(result.stdout)["checks"]}
    assert found["loads in transformers"].startswith("some layers with the folder's other files")
    assert "layers 0 of 2" in found["sentence-transformers"]


def test_settings_of_generation_that_are_not_readable_fail_the_proof(llama: Path, gqkva: Run) -> None:
    """Transformers generates without them, and says nothing."""
    out = llama.parent / "out"
    assert gqkva("convert", llama, out, "--gkv", 2).exit_code == 0
    (out / "generation_config.json").write_text('{"num_beams": many}')
    result = gqkva("verify", out)
    assert result.exit_code == 9, result.output
    assert "generation_config.json" in result.stderr
