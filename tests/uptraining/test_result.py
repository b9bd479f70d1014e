"""What training writes: each tensor in the dtype it was stored in, and files by the rule of conversions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learners
import pytest
import torch
import transformers
from learners import Lesson
from safetensors.torch import load_file, save_file
from short_runs import options, weights
from typer.testing import Result

from gqkva_convert.checkpoint.folder import PICKLED, SAFETENSORS
from gqkva_convert.modeling.bundle import modeling_text
from gqkva_convert.modeling.families import GROUPED_FAMILIES

Run = Callable[..., Result]
_ALONE = dict.fromkeys(("teacher", "matching", "matching_learning_rate"))
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def restore(
    folder: Path, *, norms: torch.dtype, others: torch.dtype, pickled: bool = False, **config: Any
) -> None:
    """Store a folder's norms in one dtype and its other tensors in another; change its configuration."""
    tensors = {
        name: tensor.to(norms if "norm" in name or ".ln_" in name else others)
        for name, tensor in load_file(folder / SAFETENSORS).items()
    }
    if pickled:
        (folder / SAFETENSORS).unlink()
        torch.save(tensors, folder / PICKLED)
    else:
        save_file(tensors, folder / SAFETENSORS, metadata={"format": "pt"})
    path = folder / "config.json"
    data = json.loads(path.read_text())
    data.pop("dtype")
    path.write_text(json.dumps(data | config))


def dtypes(folder: Path) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in weights(folder).items()}


@pytest.mark.parametrize(
    ("stored", "changed"),
    [
        ({"norms": F32, "others": BF16, "dtype": "bfloat16"}, {}),
        ({"norms": F32, "others": F32, "dtype": "bfloat16"}, {"ema": 0.9}),
        ({"norms": F32, "others": F16, "torch_dtype": "float16"}, {"train": "kv", "matching": 0.0}),
        pytest.param(
            {"norms": BF16, "others": F32, "pickled": True},
            {"train": "lora", "matching": 0.0},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["float32-norms", "bfloat16-in-name-only", "float16-kv", "pickled-lora"],
)
def test_each_tensor_goes_back_in_its_own_dtype(
    stored: dict[str, Any], changed: dict[str, Any], lesson: Lesson, tmp_path: Path, gqkva: Run
) -> None:
    """A model of two dtypes came back all float32 under a configuration that said bfloat16."""
    source = learners.make_decoder(tmp_path / "source")
    restore(source, **stored)
    assert gqkva("convert", source, tmp_path / "gqa", "--gkv", 2, "--merge", "mean").exit_code == 0
    lesson = Lesson(source, tmp_path / "gqa", lesson.data)
    given = options(lesson, tmp_path, **changed)
    result = gqkva("uptrain", tmp_path / "gqa", tmp_path / "out", *given)
    assert result.exit_code == 0, result.output
    assert dtypes(tmp_path / "out") == dtypes(tmp_path / "gqa")
    assert len({*dtypes(tmp_path / "out").values()}) == len({stored["norms"], stored["others"]})
    before, after = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("gqa", "out"))
    assert before == after
    trained, started = weights(tmp_path / "out"), weights(tmp_path / "gqa")
    assert any(not trained[name].equal(tensor) for name, tensor in started.items())
    verified = gqkva("verify", tmp_path / "out", "--against", source)
    assert verified.exit_code == 0, verified.output


def test_an_old_gpt2_keeps_its_dtypes_under_new_names(lesson: Lesson, tmp_path: Path, gqkva: Run) -> None:
    """Stored without prefix, with masks and tied copies, it is saved as transformers saves."""
    source = learners.make_decoder(tmp_path / "gpt2", "gpt2", n_inner=48, n_layer=2, n_embd=32, n_head=4)
    restore(source, norms=F32, others=BF16, torch_dtype="bfloat16")
    tensors = {n.removeprefix("transformer."): t for n, t in load_file(source / SAFETENSORS).items()}
    tensors |= {"lm_head.weight": tensors["wte.weight"], "h.0.attn.masked_bias": torch.tensor(-1e4)}
    (source / SAFETENSORS).unlink()
    torch.save(tensors, source / PICKLED)
    given = options(Lesson(source, source, lesson.data), tmp_path, **_ALONE)
    result = gqkva("uptrain", source, tmp_path / "out", "--any-model", *given)
    assert result.exit_code == 0, result.output
    assert dtypes(tmp_path / "out") == {
        f"transformer.{name}": tensor.dtype
        for name, tensor in tensors.items()
        if name not in ("lm_head.weight", "h.0.attn.masked_bias")
    }


def test_files_go_along_as_with_a_conversion(lesson: Lesson, tmp_path: Path, gqkva: Run) -> None:
    """No code of the folder, no folder inside it; a grouped model's modelling file is written anew."""
    source = learners.make_decoder(tmp_path / "gpt2", "gpt2", n_inner=48, n_layer=2, n_embd=32, n_head=4)
    student = tmp_path / "gqa"
    assert gqkva("convert", source, student, "--gkv", 2, "--merge", "mean").exit_code == 0
    (student / "deep").mkdir()
    (student / "deep" / "notes.txt").symlink_to(lesson.data)
    modeling = student / "modeling_gqkva_gpt2.py"
    modeling.write_text(modeling.read_text() + "# changed\n")
    (student / "other.py").write_text("raise SystemExit\n")
    (student / "chat_template.jinja").write_text("{{ messages }}")
    out = tmp_path / "out"
    given = options(Lesson(source, student, lesson.data), tmp_path, matching=0.0)
    result = gqkva("uptrain", student, out, *given)
    assert result.exit_code == 0, result.output
    assert (out / modeling.name).read_text() == modeling_text(GROUPED_FAMILIES["gpt2"])
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "generation_config.json", "gqkva_report.json", SAFETENSORS, modeling.name),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert "other.py" not in (out / "gqkva_report.json").read_text()
    model = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert type(model).__name__ == "GqkvaGPT2LMHeadModel"


def test_heads_that_the_class_does_not_have_are_kept(lesson: Lesson, tmp_path: Path, gqkva: Run) -> None:
    """BERT's published checkpoints hold a pooler and a second head under a class without them."""
    sizes = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = transformers.BertConfig(**sizes, num_attention_heads=4, max_position_embeddings=64)
    source = tmp_path / "bert"
    transformers.BertForPreTraining(config).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((lesson.teacher / name).read_bytes())
    tokenizer = json.loads((source / "tokenizer_config.json").read_text()) | {
        "mask_token": "the",
        "pad_token": "a",
    }
    (source / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    restore(source, norms=F32, others=F16, architectures=["BertForMaskedLM"])
    given = options(Lesson(source, source, lesson.data), tmp_path, **_ALONE)
    result = gqkva("uptrain", source, tmp_path / "out", "--any-model", *given)
    assert result.exit_code == 0, result.output
    before, after = weights(source), weights(tmp_path / "out")
    assert {n: (t.dtype, t.shape) for n, t in before.items()} == {
        n: (t.dtype, t.shape) for n, t in after.items()
    }
    same = {name for name, tensor in before.items() if after[name].equal(tensor)}
    assert {name for name in before if "pooler" in name or "seq_relationship" in name} <= same
    assert len(same) < len(before)
