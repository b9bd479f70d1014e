"""Model cards say what was done and measured, and nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grouped_pairs import plan_of
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from gqkva_convert import report
from gqkva_convert.checkpoint.digest import files_sha256
from gqkva_convert.checkpoint.hub import Located
from gqkva_convert.conversion.inspect import inspect
from gqkva_convert.conversion.prepare import make_draft, plan_shards
from gqkva_convert.conversion.write import write
from gqkva_convert.data.names import short_name
from gqkva_convert.description.card import is_ours, model_card, read_card
from gqkva_convert.errors import CheckpointError
from gqkva_convert.source.model import open_model

METRIC = {
    "metric": "perplexity",
    "value": 11.71,
    "interval": [11.2, 12.3],
    "against": 11.01,
    "against_interval": None,
    "difference": 0.7,
    "difference_interval": [0.6, 0.8],
    "better": "lower",
}
EVALUATION: dict[str, Any] = {
    "format_version": 1,
    "results": [
        {
            "task": "language modelling",
            "data": "/home/someone/private|data/wiki text.jsonl",
            "split": "test",
            "samples": 65280,
            "unit": "tokens",
            "against": "source",
            "metrics": [METRIC, {"metric": "top-1 agreement", "value": 0.93}],
            "settings": {"length": 256},
            "versions": {"torch": "2.13.0"},
            "machine": "2 cores",
            "date": "2026-11-25",
        },
        {"task": "lm-eval", "data": "arc_easy", "metrics": [{"metric": "acc", "value": 0.25}]},
    ],
}
SPEED = {
    "prefill_tokens_per_second": 81234.5,
    "time_to_first_token_seconds": 0.051,
    "decode_tokens_per_second": 41.23,
    "kv_cache_bytes": 2_097_152,
    "peak_memory_bytes": 5_000_000_000,
}
BENCH = {
    "format_version": 1,
    "device": "cpu",
    "dtype": "bfloat16",
    "machine": "2 cores",
    "date": "2026-11-25",
    "versions": {"torch": "2.13.0"},
    "settings": {},
    "rows": [
        {"model": "converted", "context": 4096, "batch": 1, **SPEED},
        {"model": "original", "context": 4096, "batch": 1, "decode_tokens_per_second": 20.5},
    ],
    "speedup": [{"context": 4096, "batch": 1, "decode": 1.8, "ideal": 2.0}],
}


def change(folder: Path, **changes: Any) -> None:
    """Change the folder's report."""
    path = folder / "gqkva_report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_card_round_trips_through_huggingface_hub(stock: Path, tmp_path: Path) -> None:
    """The Hub shows what it can parse; a card it cannot read is a page without a model."""
    (stock / "gqkva_evaluation.json").write_text(json.dumps(EVALUATION))
    (stock / "gqkva_bench.json").write_text(json.dumps(BENCH))
    card = model_card(stock, repo_id="owner/name")
    text = str(card)
    assert str(ModelCard(text)) == text
    card.save(tmp_path / "README.md")
    data = metadata_load(tmp_path / "README.md")
    assert data is not None
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["en", "fr"]
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["tags"] == ["small", "gqkva", "grouped-attention"]
    assert "base_model" not in data, "a local folder is no model of the Hub"
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "name"
    assert eval_results_to_model_index(name, results) == data["model-index"]
    assert [result.metric_value for result in results] == [11.71, 0.93, 0.25]
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == data
    assert not re.search(r"\{\{|\{%|\[More Information|None|nan\b|TODO", text)
    assert "someone" not in text
    assert is_ours(text)
    assert is_ours(text.replace("\n", "\r\n"))
    assert not is_ours(text.replace("11.71", "1.71"))


def test_every_number_of_a_card_was_recorded(stock: Path) -> None:
    """A card that flatters is worse than none."""
    (stock / "gqkva_evaluation.json").write_text(json.dumps(EVALUATION))
    (stock / "gqkva_bench.json").write_text(json.dumps(BENCH))
    text = str(model_card(stock))
    report = json.loads((stock / "gqkva_report.json").read_text())
    cache = inspect(stock)["kv_cache_bytes_per_token"]
    assert f"| parameters | {report['source']['parameters']:,} | {report['parameters']:,} |" in text
    assert f"| {3 * cache:,} | {cache:,} | 33.3% |" in text
    assert (
        "| self | 0-1 | MHA: 6 query, 6 key/value heads of 4 | GQA-2: 6 query, 2 key/value heads of 4 |"
        in text
    )
    assert (
        "| language modelling | wiki text.jsonl, test | 65,280 tokens | perplexity (lower is better) "
        "| 11.71 (11.2 to 12.3) | 11.01 | 0.7 (0.6 to 0.8) |"
    ) in text
    assert "| 4,096 | 1 | this model | 81,234 | 0.051 | 41.23 | 2.097 | 5,000 |" in text
    assert "| 4,096 | 1 | original | - | - | 20.5 | - | - |" in text
    assert all(digest in text for digest in report["verification"]["sha256"].values())
    assert all(paper in text for paper in ("2311.03426", "2305.13245", "2406.14963"))


def test_measurements_of_other_weights_are_refused(stock: Path) -> None:
    """They would stand on the card as this model's."""
    result = {**EVALUATION["results"][1], "model_sha256": "0" * 64}
    (stock / "gqkva_evaluation.json").write_text(json.dumps({"format_version": 1, "results": [result]}))
    with pytest.raises(CheckpointError, match="was measured of other weights"):
        model_card(stock)
    weights = {path.name: path for path in stock.glob("*.safetensors")}
    result["model_sha256"] = files_sha256(weights)
    (stock / "gqkva_evaluation.json").write_text(json.dumps({"format_version": 1, "results": [result]}))
    assert "arc_easy" in str(model_card(stock))


def test_speed_of_other_weights_is_refused(stock: Path) -> None:
    """A file that was copied from another folder."""
    (stock / "gqkva_bench.json").write_text(json.dumps({**BENCH, "model_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="measured of other weights"):
        model_card(stock)


def test_speed_beside_another_model_names_it(stock: Path) -> None:
    (stock / "gqkva_bench.json").write_text(json.dumps({**BENCH, "against": "me/another"}))
    text = str(model_card(stock))
    assert "| 4,096 | 1 | me/another | - | - | 20.5 |" in text
    assert "| original |" not in text


def test_a_picture_of_an_earlier_measurement_is_not_shown(stock: Path) -> None:
    """It would stand beside other numbers."""
    picture, numbers = stock / "report-quality.png", stock / "gqkva_evaluation.json"
    numbers.write_text(json.dumps(EVALUATION))
    picture.write_bytes(b"")
    os.utime(numbers, (1000, 1000))
    assert "](report-quality.png)" in str(model_card(stock))
    os.utime(picture, (999, 999))
    assert "](report-quality.png)" not in str(model_card(stock))


def test_measurements_of_one_data_set_are_told_apart(stock: Path) -> None:
    """By their settings, in the metadata too."""
    (result, *_) = EVALUATION["results"]
    results = [{**result, "settings": {"length": length}} for length in (256, 16)]
    (stock / "gqkva_evaluation.json").write_text(json.dumps({**EVALUATION, "results": results}))
    found = model_card(stock).data.eval_results
    assert {each.metric_args["length"] for each in found} == {256, 16}


def test_a_card_says_how_and_beside_what_it_was_measured(stock: Path) -> None:
    """Length and stride decide a perplexity; what is no source is not called the original."""
    (stock / "gqkva_evaluation.json").write_text(json.dumps(EVALUATION))
    text = str(model_card(stock))
    assert "length 256." in text
    assert "| original | difference |" in text
    results = [{**result, "against": "me/another"} for result in EVALUATION["results"]]
    (stock / "gqkva_evaluation.json").write_text(json.dumps({**EVALUATION, "results": results}))
    assert "| me/another | difference |" in str(model_card(stock))
    assert "report-heads.png" not in text
    report(stock)
    assert "](report-heads.png)" in str(model_card(stock))


def test_what_was_not_measured_is_not_claimed(grouped: Path) -> None:
    """No table without a measurement, no runtime without a test."""
    text = str(model_card(grouped))
    assert "## Quality\n\nNot measured." in text
    assert "## Speed" not in text
    assert "llama.cpp" not in text
    assert "trust_remote_code=True" in text
    assert "custom_code" in model_card(grouped).data.tags
    change(grouped, verification=None)
    assert "**Not verified**" in str(model_card(grouped))


def test_a_model_of_the_hub_s_cache_is_named(stock: Path) -> None:
    """Many give the folder that `hf download` printed."""
    report = json.loads((stock / "gqkva_report.json").read_text())
    where = f"/home/x/hub/models--meta--Tiny-1.0/snapshots/{'b' * 40}"
    change(stock, source={**report["source"], "name": where, "card": {"tags": 3, "license": {"a": 1}}})
    card = model_card(stock)
    assert card.data.base_model == "meta/Tiny-1.0"
    assert card.data.license == "apache-2.0", "of the LICENSE file"
    assert "/home/x" not in str(card)


def test_layers_that_differ_are_listed_apart(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Whoever sizes a cache needs each layer's heads."""
    source = open_model(tiny("t5"))
    plan = plan_of(source, "mixed")
    located = Located(tiny("t5"), "google/t5-tiny", "a" * 40, {})
    write(plan_shards(located, source, make_draft(source, plan, {}), tmp_path / "out", None))
    card = model_card(tmp_path / "out")
    text = str(card)
    for row in ("| self | 0 | ", "| self | 1 | ", "| cross | 2 | "):
        assert row in text or row.replace("self", "encoder") in text, text
    assert "cross-cache bytes a source token" in text
    assert card.data.base_model == "google/t5-tiny"
    assert card.data.pipeline_tag is None
    assert "AutoModelForSeq2SeqLM" in text
    assert "https://huggingface.co/google/t5-tiny" in text


def test_training_is_summed_up(stock: Path) -> None:
    """Tokens and losses are what a reader asks of a trained model."""
    change(
        stock,
        uptraining={
            "task": "causal",
            "tokens": 20_000_000,
            "steps": 500,
            "settings": {"data": "/data/private/corpus.jsonl", "teacher": "meta/llama", "seed": 7},
            "held_out_loss_before": 2.5,
            "held_out_loss": 2.25,
            "teacher_held_out_loss": None,
        },
    )
    text = str(model_card(stock))
    assert "| tokens | 20,000,000 |" in text
    assert "| data | corpus.jsonl |" in text
    assert "| held-out loss after | 2.25 |" in text
    assert "private" not in text
    assert "teacher |  |" not in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gqkva_evaluation.json", "{", "is not JSON"),
        ("gqkva_evaluation.json", "[]", "its top level"),
        ("gqkva_evaluation.json", '{"format_version": 2, "results": []}', "format_version"),
        (
            "gqkva_evaluation.json",
            '{"format_version": 1, "results": [{"task": "lm-eval", "data": "y", "metrics": '
            '[{"metric": "z", "value": NaN}]}]}',
            "results.0.metrics.0.value",
        ),
        (
            "gqkva_bench.json",
            '{"format_version": 1, "device": "cpu", "dtype": "x", "rows": [{}]}',
            "rows.0.model",
        ),
    ],
)
def test_a_damaged_measurement_is_named(name: str, content: str, words: str, stock: Path) -> None:
    """It is better to stop than to publish half a table."""
    (stock / name).write_text(content)
    with pytest.raises(CheckpointError, match=re.escape(str(stock / name))) as caught:
        model_card(stock)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["---\n- [\n---\n", "---\n- a list\n---\n", b"\xff\xfe\x00"])
def test_a_card_that_cannot_be_read_is_named(text: str | bytes, tmp_path: Path) -> None:
    """The user's own card is checked before it is sent."""
    (tmp_path / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match="is no model card"):
        read_card(tmp_path / "README.md")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("wikitext", "wikitext"),
        ("/home/someone/corpus", "corpus"),
        ("../corpus.txt", "corpus.txt"),
        ("data/corpus.jsonl", "corpus.jsonl"),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B"),
    ],
)
def test_paths_are_nobodys_business(given: str, shown: str) -> None:
    """A card goes to strangers."""
    assert short_name(given) == shown
