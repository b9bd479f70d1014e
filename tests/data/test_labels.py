"""Labels are the model's answers by their names where they have some, whatever their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from transformers import ViTConfig

from gqkva_convert.data.labels import label_numbers
from gqkva_convert.data.records import load_records
from gqkva_convert.errors import DataError

GARMENTS = ["T-shirt/top", "Trouser", "Pullover"]


def named(names: list[str] | None, values: list[int]) -> Any:
    kind = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
    return datasets.Dataset.from_dict({"label": values}, features=datasets.Features({"label": kind}))


def config(names: list[str] | None, count: int = 3) -> ViTConfig:
    return ViTConfig(num_labels=count) if names is None else ViTConfig(id2label=dict(enumerate(names)))


def answers(data: Any, model: ViTConfig) -> list[int]:
    number = label_numbers(data, "label", model, "data")
    return [number(label) for label in data["label"]]


@pytest.mark.parametrize(
    ("names", "model", "expected"),
    [
        (None, None, [0, 1, 2]),
        (GARMENTS, None, [0, 1, 2]),
        (GARMENTS, GARMENTS, [0, 1, 2]),
        (["Pullover", "t shirt / top", "trouser"], GARMENTS, [2, 0, 1]),
        (["LABEL_0", "LABEL_2", "LABEL_1"], None, [0, 2, 1]),
        (["0", "2", "1"], None, [0, 2, 1]),
        (["cat", "dog", "emu"], GARMENTS, [0, 1, 2]),  # nothing says that they are others
    ],
)
def test_labels_with_names_are_the_models(
    names: list[str] | None, model: list[str] | None, expected: list[int]
) -> None:
    assert answers(named(names, [0, 1, 2]), config(model)) == expected


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (
            ["Dress", "T-shirt/top", "Trouser"],
            [0, 1],
            "label 1 is 'T-shirt/top', which the model answers with 0",
        ),
        (["0", "1", "10"], [0, 1, 2], "has labels from 0 to 10, the model answers 3"),
        (GARMENTS, [-1, -1], "has labels from -1 to -1"),
        (None, [0, 5], "has labels from 0 to 5, the model answers 3"),
    ],
)
def test_labels_of_other_answers_are_refused(
    names: list[str] | None, values: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        label_numbers(named(names, values), "label", config(GARMENTS), "data")


def test_folders_are_labels_a_single_one_too(tmp_path: Path) -> None:
    """`datasets` numbers them by the alphabet and takes one alone for none."""
    for name in ("trouser", "pullover"):
        (tmp_path / "two" / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "two" / name / "1.png")
    (tmp_path / "one" / "trouser").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "one" / "trouser" / "1.png")
    model = config(GARMENTS)
    assert answers(load_records(str(tmp_path / "two"), streaming=False), model) == [2, 1]
    assert answers(load_records(str(tmp_path / "one"), streaming=False), model) == [1]
    (tmp_path / "none").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "none" / "1.png")
    assert "label" not in load_records(str(tmp_path / "none"), streaming=False).features


def test_the_standard_library_has_two_parts() -> None:
    sizes = {
        part: len(load_records("python-library", streaming=False, split=part)) for part in ("train", "test")
    }
    assert sizes["train"] > 5 * sizes["test"]
    with pytest.raises(DataError, match="has the parts train and test, no validation"):
        load_records("python-library", streaming=False, split="validation")
