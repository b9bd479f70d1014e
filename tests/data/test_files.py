"""Files and folders of data: compressed, saved by `datasets`, of several configurations; and unsafe ones."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chats
import datasets
import pytest
from short_runs import losses
from typer.testing import Result

from gqkva_convert.data.names import DataName, fingerprint, short_name, without_folders
from gqkva_convert.data.records import TEST, load_records
from gqkva_convert.errors import DataError

Run = Callable[..., Result]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TRAIN = [{"text": f"the fox number {number}"} for number in range(8)]
HELD = [{"text": "a lazy dog"}, {"text": "an old tree"}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GQKVA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Folders that hold the same: parquet files by part, saved ones, one of two configurations."""
    train, held = datasets.Dataset.from_list(TRAIN), datasets.Dataset.from_list(HELD)
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    train.select(range(5)).to_parquet(tmp_path / "parquet" / "data" / "train-00000-of-00002.parquet")
    train.select(range(5, 8)).to_parquet(tmp_path / "parquet" / "data" / "train-00001-of-00002.parquet")
    held.to_parquet(tmp_path / "parquet" / "data" / "test-00000-of-00001.parquet")
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": train, "test": held}).save_to_disk(tmp_path / "saved")
    files = {"small/train": TRAIN, "small/test": HELD, "large/train": HELD}
    for name, rows in files.items():
        (tmp_path / "card" / name).parent.mkdir(parents=True, exist_ok=True)
        chats.write_rows(tmp_path / "card" / f"{name}.jsonl", rows)
    described(tmp_path / "card", {"small": "small/train.jsonl", "large": "large/train.jsonl"})
    (tmp_path / "several").mkdir()
    chats.write_rows(tmp_path / "several" / "0.jsonl", TRAIN[:5])
    with gzip.open(tmp_path / "several" / "1.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in TRAIN[5:])
    return tmp_path


def described(folder: Path, configurations: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [f"- config_name: {name}\n  data_files: {path}\n" for name, path in configurations.items()]
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n# Data\n")


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "parquet",
        "parquet[train]",
        "one",
        "saved",
        "saved[train]",
        "card:small",
        "card:small[train]",
        "several",
    ],
)
def test_folders_are_read_by_their_names(name: str, streaming: bool, folders: Path) -> None:
    """Every file of the part, none of another."""
    found = list(load_records(str(folders / name), streaming=streaming))
    assert found == TRAIN


@pytest.mark.parametrize("name", ["parquet", "parquet[test]", "saved", "saved[test]", "card:large"])
def test_another_part_is_read_by_its_name(name: str, folders: Path) -> None:
    assert list(load_records(str(folders / name), streaming=False, part=TEST)) == HELD


def test_a_slice_of_a_split_is_one() -> None:
    assert len(load_records("python-library[test]", streaming=False)) > 1
    with pytest.raises(DataError, match="no dev"):
        load_records("python-library[dev]", streaming=False)


@pytest.mark.parametrize(
    ("name", "pack"), [("x.jsonl.gz", gzip.open), ("x.jsonl.bz2", bz2.open), ("x.jsonl.xz", lzma.open)]
)
def test_compressed_files_are_what_they_hold(name: str, pack: Any, tmp_path: Path) -> None:
    with pack(tmp_path / name, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in TRAIN)
    for streaming in (True, False):
        assert list(load_records(str(tmp_path / name), streaming=streaming)) == TRAIN
    with pack(tmp_path / name.replace("jsonl", "txt"), "wt") as file:
        file.write("a fox\n")
    assert list(load_records(str(tmp_path / name.replace("jsonl", "txt")), streaming=True)) == [
        {"text": "a fox"}
    ]


def test_zstandard_is_read_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.jsonl.zst"
    file.write_bytes(b"\x28\xb5\x2f\xfd")
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        for name in (file, tmp_path):
            with pytest.raises(DataError, match="pip install zstandard"):
                load_records(str(name), streaming=True)
    zstandard = pytest.importorskip("zstandard")
    file.write_bytes(zstandard.compress("".join(json.dumps(row) + "\n" for row in TRAIN).encode()))
    for streaming in (True, False):
        assert list(load_records(str(file), streaming=streaming)) == TRAIN


def test_commands_take_parts_by_name(folders: Path, gqkva: Run) -> None:
    """`convert`, `evaluate` and `uptrain`, which streams and resumes a saved folder, too."""
    model = chats.make_chat_model(folders / "model", None)
    saved = folders / "saved"
    sizes = ("--calibration-samples", "2", "--calibration-length", "8", "--refine", "none")
    made = gqkva("convert", model, folders / "made", "--gkv", "2", "--calibration", f"{saved}[train]", *sizes)
    assert made.exit_code == 0, made.output
    measured = gqkva("evaluate", model, "--data", f"{saved}[test]", "--no-save", "--json")
    assert json.loads(measured.stdout)[0]["reading"]["rows"] == len(HELD)
    chosen = gqkva("evaluate", model, "--data", saved, "--split", "train", "--no-save", "--json")
    assert json.loads(chosen.stdout)[0]["reading"]["rows"] == len(TRAIN)
    both = gqkva("evaluate", model, "--data", f"{saved}[test]", "--split", "train", "--no-save")
    assert both.exit_code == 11
    assert "leave one out" in both.stderr
    steps = ("--tokens", "64", "--length", "8", "--batch-size", "2", "--set", "held_out_rows=2")
    data = ("--data", f"{saved}[train]", "--held-out", f"{saved}[test]", "--set", "streaming=true")
    trained = gqkva("uptrain", folders / "made", folders / "out", *data, *steps)
    assert trained.exit_code == 0, trained.output
    assert len(losses(folders / "out-run")) == 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("saved[dev]", ["has the splits train, test, no dev"]),
        ("one[train]", ["has no splits"]),
        ("saved:x", ["has no configurations"]),
        ("parquet[tset]", ["Unknown split", "choose another --split"]),
        ("card", ["Config name is missing", "small", "NAME:CONFIGURATION"]),
        ("card:huge", ["'huge' not found", "small"]),
        ("several/0.jsonl[train]", ["is one file"]),
        ("mixed", ["files of csv, json", "give one of the files"]),
        ("outside", ["names", "which lies outside it"]),
        ("linked", ["names", "which lies outside it"]),
        ("damaged", ["which lies outside its folder"]),
        ("parts", ["which lies outside its folder"]),
        ("pickled", ["cannot read"]),
        ("pickled/x.pkl", ["a file of data ends in"]),
        ("pandas", ["is a format, not data"]),
    ],
)
def test_what_is_not_there_or_not_safe_is_refused(
    name: str, words: list[str], folders: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file outside the folder is read because the folder says so, and no pickle at all."""
    unsafe(folders)
    monkeypatch.chdir(folders)
    model = chats.make_chat_model(folders / "model", None)
    result = gqkva("evaluate", model, "--data", name, "--no-save")
    assert result.exit_code == 11, result.output
    (line,) = result.stderr.strip().splitlines()
    for word in words:
        assert word in line
    assert not (folders / "pwned").exists()


def unsafe(folders: Path) -> None:
    (folders / "mixed").mkdir()
    chats.write_rows(folders / "mixed" / "a.jsonl", TRAIN)
    (folders / "mixed" / "b.csv").write_text("text\na fox\n")
    secret = chats.write_rows(folders / "secret.jsonl", TRAIN)
    described(folders / "outside", {"default": "../secret.jsonl"})
    described(folders / "linked", {"default": str(secret)})
    shutil.copytree(folders / "one", folders / "damaged")
    state = json.loads((folders / "damaged" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../one/data-00000-of-00001.arrow"}]
    (folders / "damaged" / "state.json").write_text(json.dumps(state))
    (folders / "parts").mkdir()
    (folders / "parts" / "dataset_dict.json").write_text(json.dumps({"splits": ["../one"]}))
    (folders / "pickled").mkdir()
    (folders / "pickled" / "x.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")


def test_names_are_taken_apart_and_put_together(folders: Path) -> None:
    """A path that exists is itself; reports keep the part, not the folders, and no sample for strangers."""
    assert DataName.read("a/b:c[train[:10%]]") == DataName("a/b", "c", "train[:10%]")
    assert DataName.read("a/b[test]") == DataName("a/b", None, "test")
    assert DataName.read("https://x.org/a[b]") == DataName("https://x.org/a[b]")
    odd = folders / "odd[train]"
    odd.mkdir()
    assert DataName.read(str(odd)) == DataName(str(odd))
    assert short_name(f"{folders}/saved[test]") == "saved[test]"
    assert fingerprint(f"{folders}/saved[test]") != fingerprint(f"{folders}/saved[train]")
    reading = {"data": f"{folders}/saved[test]", "shape": "conversational", "sample": "private"}
    assert without_folders(reading) == {"data": "saved[test]", "shape": "conversational"}
