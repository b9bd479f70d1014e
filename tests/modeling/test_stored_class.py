"""The class of a checkpoint is the one whose tensors are stored; it loads what transformers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import Result

from gqkva_convert.architectures import FAMILIES, Family
from gqkva_convert.checkpoint.folder import PICKLED, SAFETENSORS, open_checkpoint
from gqkva_convert.modeling.families import GROUPED_FAMILIES
from gqkva_convert.modeling.loading import load_model
from gqkva_convert.modeling.stored_class import stored_classes
from gqkva_convert.source.model import open_model

Run = Callable[..., Result]

# Classes whose tensors are also those of another class, and the one that is taken for them without a name.
SAME = {
    **{
        f"{stem}ForCausalLM": f"{stem}ForMaskedLM"
        for stem in ("Roberta", "XLMRoberta", "Camembert", "Electra")
    },
    "BertLMHeadModel": "BertForMaskedLM",
    "BertForPreTraining": "BertForMaskedLM",
    "T5Model": "T5ForConditionalGeneration",
    "BartModel": "BartForConditionalGeneration",
    "WhisperModel": "WhisperForConditionalGeneration",
    **{f"{stem}Model": f"{stem}ForCausalLM" for stem in ("Gemma", "Starcoder2", "OPT")},
    "GPT2Model": "GPT2LMHeadModel",
}
# Classes whose one linear layer on top says nothing of what it classifies.
UNCLEAR = ("MultipleChoice", "SequenceClassification", "TokenClassification")


def described(folder: Path, **changes: Any) -> Path:
    """Change keys of a folder's configuration; None takes one away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], *, pickled: bool = False) -> Path:
    """Change the tensors of a folder, and store them as a pickle if asked to."""
    tensors = load_file(folder / SAFETENSORS)
    change(tensors)
    (folder / SAFETENSORS).unlink()
    if pickled:
        torch.save(tensors, folder / PICKLED)
    else:
        save_file(tensors, folder / SAFETENSORS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_every_class_is_known_by_its_tensors(family: Family, tmp_path: Path) -> None:
    """As transformers saves it, with its name and without; a table that is wrong shows here."""
    found, meant = {}, {}
    for name in GROUPED_FAMILIES[family.model_type].stock_classes:
        folder = tiny_models.save(tiny_models.build(family.model_type, name), tmp_path / name)
        checkpoint = open_checkpoint(folder)
        assert stored_classes(family, checkpoint.config, checkpoint.tensors) == (name,)
        unnamed = {key: value for key, value in checkpoint.config.items() if key != "architectures"}
        classes = stored_classes(family, unnamed, checkpoint.tensors)
        found[name], meant[name] = classes, (SAME.get(name, name),)
        if len(classes) > 1:
            assert name in classes
            assert all(each.endswith(UNCLEAR) for each in classes)
            meant[name] = classes
    assert found == meant


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi", "opt", "bert", "roberta", "vit", "distilbert"])
def test_a_model_without_its_head_is_its_base_model(
    name: str, pickled: bool, tmp_path: Path, gqkva: Run
) -> None:
    """Transformers draws a head anew under the class that config.json names; every command took that one."""
    family = FAMILIES[name]
    untied = {"tie_word_embeddings": False} if family.tied else {}
    base = tiny_models.build(name, family.architecture, **untied).base_model
    folder = tiny_models.save(base, tmp_path / "base")
    described(folder, architectures=[family.architecture])
    changed(folder, lambda tensors: None, pickled=pickled)
    inspected = json.loads(gqkva("inspect", folder, "--json").stdout)
    assert inspected["architecture"] == f"{family.stem}Model"
    assert f"stored is a {family.stem}Model; config.json names" in gqkva("inspect", folder).stdout
    heads = tiny_models.HEADS // 2
    converted = gqkva("convert", folder, tmp_path / "out", "--gkv", heads)
    assert converted.exit_code == 0, converted.output
    (written,) = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    assert written.removeprefix("Gqkva") == f"{family.stem}Model"
    verified = gqkva("verify", tmp_path / "out", "--against", folder)
    assert verified.exit_code == 0, verified.output
    loaded = load_model(folder, family.architecture)
    torch.testing.assert_close(tiny_models.outputs(loaded), tiny_models.outputs(base.eval()))


def test_a_tied_head_is_stored_with_the_embeddings(tmp_path: Path) -> None:
    """A GPT-2 saved without head is a language model all the same, as transformers ties it."""
    model = tiny_models.build("gpt2", "GPT2LMHeadModel")
    folder = described(tiny_models.save(model.base_model, tmp_path / "gpt2"), architectures=None)
    assert open_model(folder).classes == ("GPT2LMHeadModel",)
    loaded = load_model(folder, "GPT2LMHeadModel")
    torch.testing.assert_close(tiny_models.outputs(loaded), tiny_models.outputs(model))


def test_a_causal_model_under_its_base_models_name_keeps_its_head(tmp_path: Path) -> None:
    """The named class would leave the stored head unread, and nothing could be measured."""
    model = tiny_models.build("llama", "LlamaForCausalLM")
    folder = described(tiny_models.save(model, tmp_path / "llama"), architectures=["LlamaModel"])
    assert open_model(folder).classes == ("LlamaForCausalLM",)


def test_an_encoder_alone_is_known_without_a_name(tmp_path: Path, gqkva: Run) -> None:
    """T5's encoder keeps the configuration of the whole model."""
    model = tiny_models.build("t5", "T5EncoderModel")
    folder = described(tiny_models.save(model, tmp_path / "t5"), architectures=None)
    assert open_model(folder).classes == ("T5EncoderModel",)
    converted = gqkva("convert", folder, tmp_path / "out", "--gkv", 2)
    assert converted.exit_code == 0, converted.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["GqkvaT5EncoderModel"]
    verified = gqkva("verify", tmp_path / "out", "--against", folder)
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize(
    ("name", "part"),
    [("t5", "T5EncoderModel"), pytest.param("bart", "BartForCausalLM", marks=pytest.mark.slow)],
)
def test_a_whole_model_under_the_name_of_its_part_stays_whole(
    name: str, part: str, tmp_path: Path, gqkva: Run
) -> None:
    """Transformers leaves the rest unread; a conversion said that it knew none of those tensors."""
    family = FAMILIES[name]
    folder = tiny_models.save(tiny_models.build(name, family.architecture), tmp_path / name)
    described(folder, architectures=[part])
    assert open_model(folder).classes == (family.architecture,)
    out = tmp_path / "out"
    converted = gqkva("convert", folder, out, "--gkv", 2)
    assert converted.exit_code == 0, converted.output
    verified = gqkva("verify", out, "--against", folder)
    assert verified.exit_code == 0, verified.output
    assert load_file(out / SAFETENSORS).keys() == load_file(folder / SAFETENSORS).keys()
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [f"Gqkva{family.architecture}"]


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_a_bert_of_pre_training_without_a_name_is_measured(pickled: bool, tmp_path: Path, gqkva: Run) -> None:
    """BERTs of 2019 name no class and hold both heads of pre-training, for which there is no measure."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue"]
    model = tiny_models.build("bert", "BertForPreTraining")
    folder = described(tiny_models.save(model, tmp_path / "bert"), architectures=None)
    transformers.BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(folder)
    changed(folder, lambda tensors: None, pickled=pickled)
    data = tmp_path / "texts.jsonl"
    data.write_text('{"text": "red green blue red"}\n{"text": "blue red green"}\n' * 8)
    out = tmp_path / "out"
    assert gqkva("convert", folder, out, "--gkv", 2).exit_code == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["GqkvaBertForMaskedLM"]
    heads = [name for name in load_file(out / SAFETENSORS) if "pooler" in name or "seq_relation" in name]
    assert len(heads) == 4
    measured = gqkva("evaluate", out, "--against", folder, "--data", data, "--samples", 4, "--json")
    assert measured.exit_code == 0, measured.output
    assert "masked" in measured.stdout
    whole = transformers.AutoModelForPreTraining.from_pretrained(out)
    assert type(whole).__name__ == "GqkvaBertForPreTraining"


def test_a_class_that_tensors_do_not_tell_must_be_named(tmp_path: Path, gqkva: Run) -> None:
    """A classifier of sequences and one of tokens are stored alike and compute other things."""
    model = tiny_models.build("gpt2", "GPT2ForTokenClassification")
    clear = described(tiny_models.save(model, tmp_path / "gpt2"), architectures=None)
    assert open_model(clear).classes == ("GPT2ForTokenClassification",)
    model = tiny_models.build("bert", "BertForSequenceClassification")
    folder = described(tiny_models.save(model, tmp_path / "bert"), architectures=None)
    refused = gqkva("convert", folder, tmp_path / "out", "--gkv", 2)
    assert refused.exit_code == 4
    assert 'add "architectures": ["BertFor' in " ".join(refused.stderr.split())
    assert not (tmp_path / "out").exists()


OLD = {
    "gpt2": {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 20, 20, dtype=torch.uint8),
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
    },
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq": torch.ones(1),
    },
    "llama": {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(2)},
    "bert": {
        "bert.embeddings.position_ids": torch.arange(20)[None],
        "bert.pooler.dense.weight": torch.ones(30, 30),
        "bert.pooler.dense.bias": torch.ones(30),
        "cls.seq_relationship.weight": torch.ones(2, 30),
        "cls.seq_relationship.bias": torch.ones(2),
    },
    "vit": {"vit.pooler.dense.weight": torch.ones(30, 30), "vit.pooler.dense.bias": torch.ones(30)},
    "clip": {
        f"{tower}_model.embeddings.position_ids": torch.arange(20)[None] for tower in ("text", "vision")
    },
    "bart": {"model.encoder.version": torch.tensor([3.0]), "model.decoder.version": torch.tensor([3.0])},
    "t5": {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(32, 6)},
}


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("name", OLD)
def test_tensors_that_transformers_leaves_unread_are_no_fault(
    name: str, pickled: bool, tiny: Callable[[str], Path], tmp_path: Path, gqkva: Run
) -> None:
    """Old checkpoints hold masks, positions and heads of their pre-training, too."""
    family = FAMILIES[name]
    folder = tmp_path / name
    shutil.copytree(tiny(name), folder)
    changed(folder, lambda tensors: tensors.update(OLD[name]), pickled=pickled)
    loaded = load_model(folder, family.architecture)
    assert type(loaded).__name__ == family.architecture
    stock = tiny_models.load(tiny(name), family.architecture)
    torch.testing.assert_close(tiny_models.outputs(loaded), tiny_models.outputs(stock))
    assert gqkva("convert", folder, tmp_path / "out", "--gkv", 2).exit_code == 0
    verified = gqkva("verify", tmp_path / "out", "--against", folder)
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize(
    "extra", ["model.layers.0.self_attn.gate.weight", "model.layers.7.mlp.up_proj.weight", "adapter.weight"]
)
def test_what_no_record_knows_is_still_refused(
    extra: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """A tensor of another architecture, or of a layer too many, changes what the model computes."""
    folder = tmp_path / "llama"
    shutil.copytree(tiny("llama"), folder)
    changed(folder, lambda tensors: tensors.update({extra: torch.ones(3)}))
    with pytest.raises(ValueError, match="unexpected keys: "):
        load_model(folder, "LlamaForCausalLM")


@pytest.mark.parametrize(
    "form", [("--architecture", "deci"), ("--runtime", "gguf")], ids=lambda form: form[1]
)
def test_a_model_without_its_head_is_no_language_model_of_another_form(
    form: tuple[str, str], tmp_path: Path, gqkva: Run
) -> None:
    """The programs that read these forms generate text."""
    base = tiny_models.build("llama", "LlamaForCausalLM").base_model
    folder = described(tiny_models.save(base, tmp_path / "base"), architectures=["LlamaForCausalLM"])
    refused = gqkva("export", folder, tmp_path / "out", *form)
    assert refused.exit_code == 5, refused.output
    assert "holds a LlamaModel" in refused.stderr
    assert not (tmp_path / "out").exists()
