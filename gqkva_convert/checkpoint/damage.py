"""Recognises files that are no part of a model: git-lfs pointers, web pages, error messages, empty files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gqkva_convert.errors import CheckpointError
from gqkva_convert.units import human_bytes

_LFS = b"version https://git-lfs.github.com/spec/"
# More than the longest pointer, and enough of a page to know it by.
_HEAD_BYTES = 1024
_ARCHIVES = {
    b"\x1f\x8b\x08": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\xfd7zXZ\x00": "an xz archive",
}
# Files beside the weights that a model needs, and that none has empty.
_TEXTS = re.compile(r".*\.(jinja|model|spm|tiktoken)|(vocab|merges)\.txt")
_JSON = re.compile(
    r"(added_tokens|chat_template|config|config_sentence_transformers|feature_extractor_config"
    r"|generation_config|image_processor_config|modules|normalizer|preprocessor_config|processor_config"
    r"|sentence_\w+_config|special_tokens_map|tekken|tokenizer|tokenizer_config|video_preprocessor_config"
    r"|vocab)\.json"
)
_REFUSALS = re.compile(
    rb"(\d{3}[ :]|(entry |repository |revision )?not found|access (denied|to )|unauthori[sz]ed|forbidden"
    rb"|invalid (credentials|username)|internal server error|bad gateway|too many requests)"
)


def stand_in(path: Path) -> str | None:
    """Return what a file is in place of a model's, with what to do about it; None if nothing shows.

    Reads the beginning of the file alone.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return "is empty; download it again"
    if len(head) == _HEAD_BYTES and not head.strip(b"\0"):
        return "begins with zeros alone, as an unfinished download does; download it again"
    if head.startswith(_LFS):
        size = re.search(rb"^size (\d{1,18})$", head, re.MULTILINE)
        of = f" of {human_bytes(int(size[1]))}" if size else ""
        return f"is a git-lfs pointer{of}, not the file; run `git lfs pull` in the folder it was cloned to"
    archive = next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), None)
    if archive is not None:
        return f"is {archive}, not the file; unpack it, or download the file again"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not the file (a login or error page saved in its place); download it again"
    if text.startswith((b"<?xml", b"<error>")):
        return "is an XML message, not the file (the error of a file store); download it again"
    return _message(head)


def _message(head: bytes) -> str | None:
    """Recognise a server's error saved as a file, in JSON or as one line of text."""
    try:
        data = json.loads(head)
    except (ValueError, RecursionError):
        data = None
    if isinstance(data, dict) and isinstance(data.get("error", data.get("errors")), (str, dict, list)):
        return f"is a server's error message ({_shown(head)}), not the file; download it again"
    is_line = head.isascii() and len(head) < _HEAD_BYTES and head.strip().count(b"\n") < 3
    if is_line and _REFUSALS.match(head.lower()):
        return f"is a server's error message ({_shown(head)}), not the file; download it again"
    return None


def _shown(head: bytes) -> str:
    """Return the first words of a message from strangers, in printable characters."""
    words = " ".join(head[:200].decode("utf-8", "replace").split())[:60]
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def refuse_stand_in(path: Path) -> None:
    """Refuse a file that is no part of a model, by its beginning.

    Raises:
        CheckpointError: Says what it is.
    """
    try:
        found = stand_in(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if found is not None:
        raise CheckpointError(f"{path} {found}")


def refuse_damaged_files(folder: Path) -> None:
    """Refuse a folder whose tokenizer, template, processor or module files are something else.

    Raises:
        CheckpointError: Names the first file and says what it is.
    """
    for path in sorted(folder.iterdir()):
        is_json = _JSON.fullmatch(path.name) is not None
        if not is_json and not _TEXTS.fullmatch(path.name):
            continue
        if path.is_symlink() and not path.exists():
            raise CheckpointError(f"{path} is a link to {path.readlink()}, which is not there")
        if path.is_file():
            refuse_stand_in(path)
            if is_json and not _is_whole_json(path):
                raise CheckpointError(f"{path} is not JSON; the file is damaged, get or make it again")


def _is_whole_json(path: Path) -> bool:
    """Return whether a file begins and ends as JSON's objects and lists do; a tokenizer's may be large."""
    with path.open("rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        file.seek(max(0, path.stat().st_size - 64))
        tail = file.read().rstrip()
    return (head[:1], tail[-1:]) in ((b"{", b"}"), (b"[", b"]"))
