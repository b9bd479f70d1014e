"""Recipes for large machines, run from the same files on small models and little data."""

from __future__ import annotations

import io
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learners
import pytest
from PIL import Image
from typer.testing import Result

import gqkva_convert

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]
LAUNCHER = "launcher=recipes/accelerate/cpu.yaml"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture
def run(gqkva: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs a recipe with changes and gives its steps by name."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))

    def steps(recipe: str, *changes: str) -> dict[str, Any]:
        sets = [word for change in changes for word in ("--set", change)]
        result = gqkva("run", ROOT / "recipes" / recipe, "--work", tmp_path / "work", *sets, "--json")
        assert result.exit_code == 0, result.stderr
        return {step["name"]: step for step in json.loads(result.stdout)["steps"]}

    return steps


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder like that of make_tasks.py: two tasks of four questions, and texts to learn from."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    questions = [{"context": "the quick brown", "choices": [" fox", " river"], "label": 0}] * 4
    write_task = runpy.run_path(str(ROOT / "recipes" / "asymgqa" / "make_tasks.py"))["write_task"]
    for name in ("next_line", "package"):
        write_task(folder, name, questions)
    for name in ("train", "held-out"):
        learners.write_texts(folder / f"{name}.jsonl")
    return folder


def write_dialogues(file: Path) -> Path:
    """Pairs of a text and a part of it."""
    texts = [json.loads(line)["text"] for line in learners.write_texts(file, 60).read_text().splitlines()]
    pairs = [{"dialogue": text, "summary": " ".join(text.split()[:4])} for text in texts]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return file


def write_pictures(file: Path, side: int) -> Path:
    import datasets

    def picture(shade: int) -> dict[str, bytes]:
        data = io.BytesIO()
        Image.new("RGB", (side, side), (shade, 40, 80)).save(data, "PNG")
        return {"bytes": data.getvalue()}

    rows = {"image": [picture(4 * n) for n in range(60)], "label": [n % 10 for n in range(60)]}
    datasets.Dataset.from_dict(rows).to_parquet(file)
    return file


def rows_of(folder: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]}


def test_llama(run: Callable[..., dict[str, Any]], tasks: Path, tmp_path: Path) -> None:
    """From planning with a layer-wise fit over training on two processes to what a push would send."""
    model = learners.make_decoder(tmp_path / "llama")
    corpus = learners.write_texts(tmp_path / "corpus.jsonl", 200)
    steps = run(
        "llama2-7b_gqa8_closed-form.yaml",
        f"model={model}",
        "gkv=2",
        f"data={tasks / 'train.jsonl'}",
        f"corpus={corpus}",
        "tokens=4k",
        "length=32",
        "calibration_length=32",
        "batch=[1]",
        f"tasks={tasks / 'next_line.yaml'}",
        LAUNCHER,
        "uptrain.batch_size=8",
        "uptrain.others={per_device_batch_size: 4, streaming: false, mixed_precision: 'no'}",
        "bench.context=16",
        "bench.new_tokens=4",
        "push.dry_run=true",
    )
    assert steps["push"]["command"].endswith("--dry-run")
    report = json.loads((tmp_path / "work" / "uptrained" / "gqkva_report.json").read_text())
    assert report["uptraining"]["processes"] == 2
    assert report["plan"]["refine"] == ["layerwise", "output"]


def test_opt(run: Callable[..., dict[str, Any]], tasks: Path, tmp_path: Path) -> None:
    sizes = {"ffn_dim": 48, "word_embed_proj_dim": 32}
    model = learners.make_decoder(tmp_path / "opt", "opt", **sizes)
    run(
        "asymgqa/opt.yaml",
        f"models={{tiny: {{id: {model}, half: 2, quarter: 1}}}}",
        f"data={tasks / 'train.jsonl'}",
        f"tasks={tasks / 'package.yaml'}",
        "tokens=2k",
        "samples=8",
        "convert.calibration_samples=16",
        "uptrain.batch_size=4",
        "uptrain.others={mixed_precision: 'no'}",
    )
    rows = rows_of(tmp_path / "work" / "comparison" / "converted")
    assert len(rows) == 10
    key = "perplexity on train.jsonl"
    assert "acc on package" in next(iter(rows.values()))["metrics"]
    assert (
        rows["tiny-default-half"]["metrics"][key]["value"]
        < rows["tiny-neighbour-mean-half"]["metrics"][key]["value"]
    )


def test_train(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Both shapes, from a stream as on a GPU."""
    run(
        "asymgqa/train.yaml",
        f"data={learners.write_texts(tmp_path / 'corpus.jsonl', 400)}",
        "tokenizer=built-in",
        "init.config=recipes/asymgqa/models/opt-cpu.json",
        "shapes=[opt]",
        "pretrain.tokens=4k",
        "pretrain.length=32",
        "pretrain.batch_size=8",
        "pretrain.per_device_batch_size=4",
        "pretrain.others={mixed_precision: 'no', torch_compile: false}",
    )
    assert (tmp_path / "work" / "models" / "opt" / "config.json").is_file()


def test_language(run: Callable[..., dict[str, Any]], tasks: Path, tmp_path: Path) -> None:
    model = learners.make_decoder(tmp_path / "llama")
    run(
        "asymgqa/language.yaml",
        f"model={model}",
        f"tasks={tasks}",
        f"data={tasks / 'train.jsonl'}",
        "samples=8",
        "questions=4",
        "tokens=1k",
        "sizes={size-2: {gkv: 2}}",
        "convert.calibration_samples=16",
        "tune.length=32",
        "tune-original.length=32",
    )
    assert len(rows_of(tmp_path / "work" / "comparison" / "tuned")) == 14


def test_bidirectional(run: Callable[..., dict[str, Any]], tmp_path: Path, shared_models: Path) -> None:
    """The Fashion-MNIST ViT of 4 heads, without labels to calibrate on."""
    data = write_pictures(tmp_path / "pictures.parquet", 28)
    run(
        "asymgqa/bidirectional.yaml",
        f"model={shared_models / 'vit-fmnist-hf'}",
        f"calibration={data}",
        "calibration_samples=20",
        f"data={data}",
        "metric=top-1 accuracy",
        "sizes={size-2: {gkv: 2}}",
    )
    assert len(rows_of(tmp_path / "work" / "comparison")) == 13


def test_t5(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The encoder stays; the decoder's own attention and its attention to the encoder are converted."""
    data = write_dialogues(tmp_path / "pairs.jsonl")
    config = {"d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 32, "vocab_size": 300}
    (tmp_path / "t5.json").write_text(json.dumps(config))
    gqkva_convert.init("t5", tmp_path / "t5", config=tmp_path / "t5.json", tokenizer_data=str(data))
    run(
        "gqa-t5/t5-xxl.yaml",
        f"model={tmp_path / 't5'}",
        f"data={data}",
        "samples=8",
        "tokens=4k",
        "length=32",
        "groups={mqa: {gkv: 1}, gqa-2: {gkv: 2}}",
        "uptrain.batch_size=8",
        "tune-original.batch_size=8",
        LAUNCHER,
    )
    rows = rows_of(tmp_path / "work" / "comparison")
    assert set(rows) == {"mha", "mqa-mean", "mqa-default", "gqa-2-mean", "gqa-2-default"}
    assert rows["mha"]["sizes"]["kv-cache"] == 4 * rows["mqa-mean"]["sizes"]["kv-cache"]


def test_summaries(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    data = write_dialogues(tmp_path / "pairs.jsonl")
    config = {"d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 32, "vocab_size": 300}
    (tmp_path / "t5.json").write_text(json.dumps(config))
    run(
        "gqa-t5/summaries.yaml",
        "scale=cpu",
        f"train={data}",
        f"test={data}",
        f"init.config={tmp_path / 't5.json'}",
        "pretraining_tokens=20k",
        "samples=4",
        "merges=[mean]",
        "alphas=[0.1]",
        "groups={mqa: {gkv: 1}}",
        "convert-default.calibration_length=32",
        "bench.context=32",
        "bench.batch=1",
        "bench.new_tokens=2",
    )
    assert len(rows_of(tmp_path / "work" / "comparison")) == 5


def test_pictures(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Every variant, smaller than MHA as the paper's sizes are."""
    data = write_pictures(tmp_path / "pictures.parquet", 32)
    config = {"image_size": 32, "patch_size": 16, "hidden_size": 48, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 6, "intermediate_size": 48, "num_labels": 10}
    (tmp_path / "vit.json").write_text(json.dumps(config))
    changes = {
        "cifar10.yaml": [
            "scale=cpu",
            f"train={data}",
            f"init.config={tmp_path / 'vit.json'}",
            "seeds=[0, 1]",
        ],
        "imagenet.yaml": [
            f"config={tmp_path / 'vit.json'}",
            f"data={data}",
            "variants={mha: , gqkva-2.3: {gq: 2, gkv: 3}}",
            "split=null",
            "pretrain.others={torch_compile: false, mixed_precision: 'no'}",
            LAUNCHER,
        ],
    }
    for recipe, more in changes.items():
        run(f"gqkva-vit/{recipe}", f"test={data}", "pretrain.samples=64", "pretrain.batch_size=16", *more)
        rows = rows_of(tmp_path / "work" / "comparison")
        sizes = {name: row["sizes"]["parameters"] for name, row in rows.items()}
        assert max(sizes, key=lambda name: sizes[name]) == "mha"
        assert {row["repeats"] for row in rows.values()} == {2 if recipe == "cifar10.yaml" else 1}
        (tmp_path / "work").rename(tmp_path / recipe)
