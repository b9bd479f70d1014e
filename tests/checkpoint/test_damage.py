"""What downloads leave in place of files, told from what a model has."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from gqkva_convert.checkpoint.damage import refuse_damaged_files, stand_in
from gqkva_convert.checkpoint.folder import open_checkpoint
from gqkva_convert.checkpoint.sidecars import FOLDERS
from gqkva_convert.errors import CheckpointError

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 13476839424\n".encode()
STAND_INS = {
    "pointer": (POINTER, "is a git-lfs pointer of 13.48 GB, not the file; run `git lfs pull`"),
    "pointer of no size": (POINTER.splitlines()[0] + b"\n", "is a git-lfs pointer, not the file"),
    "nothing": (b"", "is empty"),
    "zeros": (bytes(4096), "begins with zeros alone"),
    "page": (b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>", "is a web page"),
    "plain page": (b"<HTML><body>404</body>", "is a web page"),
    "xml": (
        b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "is an XML message",
    ),
    "json": (b'{"error": "Access to model x is restricted"}', 'error message ({"error": "Access to model x'),
    "errors": (b'{"errors": [{"status": 404}]}', "is a server's error message"),
    "text": (b"Entry not found\n", "is a server's error message (Entry not found)"),
    "status": (b"404: Not Found", "is a server's error message (404: Not Found)"),
    "escape": (b"Forbidden \x1b[31m", "(Forbidden ?[31m)"),
    "gzip": (gzip.compress(b"weights"), "is a gzip archive, not the file; unpack it"),
}
# Real beginnings that must pass.
GENUINE = {
    "merges.txt": b"#version: 0.2\nt h\n",
    "vocab.txt": b"[PAD]\n[UNK]\nnot\nfound\n404\n",
    "vocab.json": b'{"error": 0, "errors": 1}',
    "tokenizer.model": b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02",
    "chat_template.jinja": b"{% for message in messages %}<|im_start|>{{ message }}{% endfor %}",
    "added_tokens.json": b"{}\n",
}


@pytest.mark.parametrize("kind", STAND_INS)
def test_what_stands_in_place_of_a_file_is_named(kind: str, tmp_path: Path) -> None:
    """Not "truncated" or "not JSON": the reader must know which step of the download went wrong."""
    content, words = STAND_INS[kind]
    (tmp_path / "file").write_bytes(content)
    assert words in str(stand_in(tmp_path / "file"))


@pytest.mark.parametrize("name", GENUINE)
def test_what_a_model_has_passes(name: str, tmp_path: Path) -> None:
    """Words of a vocabulary are no errors of a server."""
    (tmp_path / name).write_bytes(GENUINE[name])
    refuse_damaged_files(tmp_path, FOLDERS)


@pytest.mark.parametrize("kind", ["pointer", "nothing", "page", "json"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_weights_of_either_format_are_named_as_what_they_are(name: str, kind: str, tmp_path: Path) -> None:
    """A clone without git-lfs has pointers in the place of all of them."""
    content, words = STAND_INS[kind]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(tmp_path)
    # An error message that is JSON is an index without a map, too.
    assert words in str(refusal.value) or "has no weight_map" in str(refusal.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "1_Pooling/config.json"])
def test_half_a_file_beside_the_weights_is_named(name: str, tmp_path: Path) -> None:
    """A tokenizer cut off in the middle would be copied as it is."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"version": "1.0", "model": {"vocab": ["a", ')
    with pytest.raises(CheckpointError, match=f"{name} is not JSON"):
        refuse_damaged_files(tmp_path, FOLDERS)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    """The other end of a folder of links was moved; the tokenizer must not get lost in silence."""
    (tmp_path / "tokenizer.json").symlink_to("gone.json")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is a link to gone.json, which is not there"):
        refuse_damaged_files(tmp_path, FOLDERS)


def test_files_that_no_model_reads_may_be_anything(tmp_path: Path) -> None:
    """Notes and results beside a model are the reader's own."""
    for name in ("results.json", "notes.txt", "page.html", "LICENSE"):
        (tmp_path / name).write_text("")
    refuse_damaged_files(tmp_path, FOLDERS)
