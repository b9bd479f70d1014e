"""Files that people write: read in time and memory that do not depend on what they hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gqkva_convert.checkpoint.yamlfile import MOST_PARTS, MOST_YAML_BYTES, parse_yaml, read_text, read_yaml
from gqkva_convert.errors import RecipeError, TrainingError


def powers(*, merged: bool = False) -> str:
    """Ten aliases of ten aliases, nine deep: a billion parts in 600 bytes."""
    lines = ["a0: &a0 {" + ", ".join(f"k{number}: 1" for number in range(10)) + "}"]
    for depth in range(1, 9):
        ten = ", ".join([f"*a{depth - 1}"] * 10)
        lines.append(f"a{depth}: &a{depth}" + (f"\n  <<: [{ten}]" if merged else f" [{ten}]"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", "line 1: not YAML: it holds itself"),
        ("a: &a\n  b: *a", "line 1: not YAML: it holds itself"),
        (powers(), f"line 5: not YAML: more than {MOST_PARTS:,} parts with its aliases"),
        (powers(merged=True), f"more than {MOST_PARTS:,} parts with its aliases"),
        ("a: 1\n" * 20_000, "line 2: not YAML: 'a' stands there twice"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2: not YAML: 'c' stands there twice"),
        ("[1, 2]: 3", "line 1: not YAML: a key is text or a number"),
        ("[" * 100_000, "not YAML: maximum recursion depth"),
        ("a: 2021-99-99", "not YAML: a value is not what its form says: month"),
        ("a: !!int ''", "not YAML: a value is not what its form says"),
        ("a: !!bool maybe", "not YAML: a value is not what its form says"),
        ("a: " + "9" * 5000, "not YAML: a value is not what its form says: Exceeds the limit"),
        ("a: !!binary 'zz'", "line 1: not YAML: failed to decode base64"),
        ('a: "\\ud800"', "line 1: not YAML: half a character"),
        ("a: \x01", "not YAML: unacceptable character"),
        ("!!python/object/apply:os.system [true]", "line 1: not YAML: could not determine a constructor"),
        ("a: b: c", "line 1: not YAML: mapping values are not allowed here"),
    ],
)
def test_what_is_no_plain_data_is_refused_with_its_line(text: str, said: str) -> None:
    """Aliases cost nothing to write, and everything to write out."""
    with pytest.raises(TrainingError) as refusal:
        parse_yaml(text, "settings.yaml", TrainingError)
    assert str(refusal.value).startswith("settings.yaml")
    assert said in str(refusal.value)


def test_plain_data_is_read() -> None:
    """An alias used twice and a merged mapping are no fault, nor is an empty text."""
    text = "base: &base {x: 1, y: [1, 2]}\none: {<<: *base, x: 2}\ntwo: *base\n"
    base = {"x": 1, "y": [1, 2]}
    assert parse_yaml(text, "r", RecipeError) == {"base": base, "one": {**base, "x": 2}, "two": base}
    assert parse_yaml("", "r", RecipeError) is None


def test_files_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_bytes(b"a" * (MOST_YAML_BYTES + 1))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, said in (
        ("large.yaml", "is larger than 1.05 MB"),
        ("binary.yaml", "cannot be read: not UTF-8 text"),
        ("absent.yaml", "cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
        ("nul\0l", "cannot be read: embedded null byte"),
    ):
        with pytest.raises(RecipeError, match=said):
            read_yaml(tmp_path / name, RecipeError)


def test_a_file_without_end_is_not_read_to_it() -> None:
    with pytest.raises(TrainingError, match=r"is larger than 100 B"):
        read_text(Path(os.devnull).with_name("zero"), TrainingError, most=100)
