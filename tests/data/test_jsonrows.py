"""JSON files of records: what `datasets` reads passes, what would crash its reader is one line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chats
import datasets
import pytest
from typer.testing import Result

from gqkva_convert.data.jsonrows import require_json_rows
from gqkva_convert.data.records import load_records
from gqkva_convert.errors import DataError

ROWS = [{"text": f"the fox {number}"} for number in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
WHOLE = {
    "lines": LINES,
    "a byte order mark": b"\xef\xbb\xbf" + LINES,
    "blank lines": b"\n" + LINES.replace(b"\n", b"\r\n\r\n"),
    "no last newline": LINES.rstrip(),
    "a list": json.dumps(ROWS).encode(),
    "an indented list": json.dumps(ROWS, indent=2).encode(),
    "a list of texts": json.dumps([row["text"] for row in ROWS]).encode(),
}
DAMAGED = {
    "null": (b"null", "line 1 is no JSON object"),
    "a null among objects": (LINES + b"null\n" + LINES, "line 4 is no JSON object"),
    "a number": (LINES + b"1e5", "line 4 is no JSON object"),
    "bytes": (LINES.replace(b"fox 1", b"f\xffx 1"), "in line 2 that are no UTF-8 text"),
    "a cut line": (LINES[:30], "line 2 is no JSON object"),
    "a cut list": (json.dumps(ROWS, indent=2).encode()[:-5], "line 1 is no JSON object"),
    "a list with null": (json.dumps([*ROWS, None]).encode(), "row 4 is not as the first"),
    "lists": (b"[[1], [2]]", "row 1 is not as the first"),
    "a web page": (b"<!DOCTYPE html><html></html>", "line 1 is no JSON object"),
    "deep": (b"[" * 100_000, "line 1 is no JSON object"),
}


@pytest.mark.parametrize("form", WHOLE)
def test_what_is_read_passes(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if form in ("a byte order mark", "blank lines") and int(datasets.__version__.split(".")[0]) < 5:
        pytest.skip("an older datasets refuses this form in one line")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    file = tmp_path / "x.json"
    file.write_bytes(WHOLE[form])
    assert [row["text"] for row in load_records(str(file), streaming=True)] == [row["text"] for row in ROWS]


@pytest.mark.parametrize("fault", DAMAGED)
@pytest.mark.parametrize(
    ("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_damage_is_named_with_its_line(
    fault: str, ending: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """`null` for a row made the reader end the whole process with a segmentation fault."""
    content, words = DAMAGED[fault]
    file = tmp_path / f"x.jsonl{ending}"
    file.write_bytes(pack(content))
    with pytest.raises(DataError, match=words) as refusal:
        require_json_rows(file)
    assert str(file) in str(refusal.value)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_cut_archive_is_one_line(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    ending = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz"}[pack]
    file = tmp_path / f"x.jsonl.{ending}"
    for cut in (0.2, 0.9):
        packed = pack(LINES * 50)
        file.write_bytes(packed[: int(cut * len(packed))])
        with pytest.raises(DataError, match=r"cannot read .*; mend the file"):
            load_records(str(file), streaming=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_files_in_a_folder_are_checked_too(tmp_path: Path, gqkva: Callable[..., Result]) -> None:
    """A folder is opened by the same reader, which would crash on the same row."""
    model = chats.make_chat_model(tmp_path / "model", None)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "b.jsonl").write_bytes(b"null")
    result = gqkva("evaluate", model, "--data", folder, "--no-save")
    assert result.exit_code == 11, result.output
    assert result.stderr.count("\n") == 1
    assert "b.jsonl: line 1 is no JSON object" in result.stderr


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_texts_in_a_table_are_checked_before_they_are_read(tmp_path: Path, gqkva: Any) -> None:
    """Bytes that are no text lie in a saved table unseen until something reads them."""
    model = chats.make_chat_model(tmp_path / "model", None)
    datasets.Dataset.from_list(ROWS * 20).save_to_disk(tmp_path / "saved")
    (table,) = (tmp_path / "saved").glob("*.arrow")
    table.write_bytes(table.read_bytes().replace(b"the fox 1", b"the f\xffx 1"))
    result = gqkva("evaluate", model, "--data", tmp_path / "saved", "--no-save")
    assert result.exit_code == 11, result.output
    assert "the data are damaged" in result.stderr
