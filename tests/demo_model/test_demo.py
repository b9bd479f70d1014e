"""The built-in model and the main job done on it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from gqkva_convert import demo, inspect
from gqkva_convert.data.python_library import is_held_out, iter_texts
from gqkva_convert.demo_model.demo import MODEL, held_out_windows

Run = Callable[..., Result]


def test_no_file_is_on_both_sides_of_the_split() -> None:
    """A perplexity on training text would flatter every row of the table."""
    training = {path for path, _ in iter_texts(held_out=False)}
    held_out = {path for path, _ in iter_texts(held_out=True)}
    assert not training & held_out
    assert len(held_out) > 20
    assert not any("test" in path.split("/") for path in held_out)


def test_the_split_depends_on_the_path_alone() -> None:
    """The same files must be held out on every Python version."""
    assert is_held_out("abc.py") == is_held_out("abc.py")
    held_out = [
        f"package/module{number}.py" for number in range(2000) if is_held_out(f"package/module{number}.py")
    ]
    assert 150 < len(held_out) < 250


def test_an_installation_without_sources_is_refused(tmp_path: Path) -> None:
    """Some embedded Pythons ship only compiled files."""
    from gqkva_convert.errors import DemoError

    with pytest.raises(DemoError, match="no source files"):
        list(iter_texts(held_out=True, folder=tmp_path))


def test_the_built_in_model_is_what_the_readme_says() -> None:
    """Eight heads, four to six million parameters, at most 12 MB, trained on at least 30 M tokens."""
    facts = inspect(MODEL)
    assert facts["attention"][0]["num_attention_heads"] == 8
    assert facts["attention"][0]["variant"] == "MHA"
    assert 4e6 <= facts["parameters"]["total"] <= 6e6
    assert set(facts["dtypes"]) == {"bfloat16"}
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 12e6
    training = json.loads((MODEL / "training.json").read_text())
    assert training["training_tokens"] >= 30e6


def test_windows_are_spread_over_all_held_out_text() -> None:
    """The first files alone would be one author's style."""
    few, many = held_out_windows(2048), held_out_windows(10**9)
    assert {len(window) for window in few} == {256}
    assert len(few) == 8
    assert few[0] == many[0]
    assert few[-1] in many[len(many) // 2 :]


@pytest.mark.slow
def test_the_demo_measures_a_working_model() -> None:
    """The original must predict held-out code about as well as its training says, each conversion worse."""
    data = demo([4, 1], tokens=8192, uptrain_tokens=0)
    original, half, half_closed, mqa, mqa_closed = data["rows"]
    assert original["nats_per_token"] < half_closed["nats_per_token"] < half["nats_per_token"] - 0.5
    assert original["nats_per_token"] < mqa_closed["nats_per_token"] < mqa["nats_per_token"] - 0.5
    assert abs(original["nats_per_token"] - data["training"]["held_out_loss_nats_per_token"]) < 0.35
    assert original["nats_per_token"] < half["nats_per_token"]
    assert original["nats_per_token"] < mqa["nats_per_token"]
    assert half["kv_cache_bytes_per_token"] * 2 == original["kv_cache_bytes_per_token"]
    assert mqa["parameters"] < half["parameters"] < original["parameters"]


def test_the_command_prints_a_table_and_json(gqkva: Run) -> None:
    """README's first command, with less text."""
    shown = gqkva("demo", "--tokens", "1024", "--gkv", "2", "--uptrain-tokens", "0")
    assert shown.exit_code == 0, shown.output
    assert "--gkv 2" in shown.stdout
    assert "perplexity" in shown.stdout
    shown = gqkva("demo", "--tokens", "2048", "--gkv", "2", "--uptrain-tokens", "8192", "--json")
    rows = json.loads(shown.stdout)["rows"]
    assert [row["variant"] for row in rows] == ["MHA", "GQA-2", "GQA-2", "GQA-2"]
    assert rows[3]["model"] == "--gkv 2 --merge closed-form, uptrained"
    assert rows[0]["nats_per_token"] < rows[3]["nats_per_token"] < rows[2]["nats_per_token"] - 0.03


def test_impossible_requests_are_one_line(gqkva: Run) -> None:
    """The demo is many users' first command."""
    result = gqkva("demo", "--gkv", "3", "--tokens", "512")
    assert result.exit_code == 2
    assert "choose one of [1, 2, 4, 8]" in result.stderr
    assert gqkva("demo", "--tokens", "0").exit_code == 2


def test_the_whole_package_runs_as_a_module() -> None:
    """`python -m gqkva_convert` is what launchers use."""
    result = subprocess.run(
        [sys.executable, "-m", "gqkva_convert", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "0.1.0"
