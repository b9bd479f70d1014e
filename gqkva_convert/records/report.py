"""The report that lies beside converted weights: where they come from, what was done, what was proven."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.folder import Checkpoint
from gqkva_convert.checkpoint.hub import Located
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.sidecars import REPORT
from gqkva_convert.errors import VerificationError
from gqkva_convert.records.source_card import source_card

FORMAT_VERSION = 1


def versions() -> dict[str, str]:
    """Versions of what a conversion ran on, without importing any of it."""
    found = {"python": platform.python_version()}
    for package in ("gqkva-convert", "numpy", "safetensors", "transformers", "torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def describe_source(located: Located, checkpoint: Checkpoint) -> dict[str, Any]:
    """A source's name, revision, sizes, card, and what identifies its files without reading them whole."""
    return {
        "name": located.name,
        "revision": located.revision,
        "card": source_card(located.folder),
        "config": checkpoint.config,
        "bytes": checkpoint.nbytes,
        "parameters": count_parameters(tensor.shape for tensor in checkpoint.tensors.values()),
        "files": describe_files(checkpoint, located.sha256),
    }


def describe_files(checkpoint: Checkpoint, sha256: dict[str, str] | None = None) -> dict[str, Any]:
    """What identifies a checkpoint's files without reading them whole.

    Args:
        checkpoint: An opened checkpoint.
        sha256: Checksums already known, by file name; those of a Hub model come with it.
    """
    known = sha256 or {}
    return {
        file.name: {
            "bytes": file.stat().st_size,
            "tensors_sha256": tensors_sha256(checkpoint, file),
            **({"sha256": known[file.name]} if file.name in known else {}),
        }
        for file in checkpoint.files
    }


def tensors_sha256(checkpoint: Checkpoint, file: Path) -> str:
    """SHA-256 of a file's table of contents: names, dtypes, shapes and offsets, one tensor a line."""
    lines = [
        f"{tensor.name} {tensor.dtype} {list(tensor.shape)} {tensor.offset}\n"
        for tensor in checkpoint.tensors.values()
        if tensor.file == file
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def count_parameters(shapes: Iterable[tuple[int, ...]]) -> int:
    """Elements of all shapes together."""
    return sum(math.prod(shape) for shape in shapes)


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a converted folder.

    Raises:
        VerificationError: There is none, or it is of a later version than ours.
    """
    path = folder / REPORT
    if not path.is_file():
        what = f"has no {REPORT}" if folder.is_dir() else "is no folder"
        raise VerificationError(f"{folder} {what}; give an output of gqkva convert, export or uptrain")
    report = read_json(path)
    if not isinstance(report, dict) or report.get("format_version") != FORMAT_VERSION:
        raise VerificationError(
            f"{path} is not a report of format {FORMAT_VERSION}; use the gqkva that wrote it"
        )
    for part in ("plan", "source", "files", "config"):
        if not isinstance(report.get(part), dict):
            raise VerificationError(f"{path} is damaged: it has no {part}")
    return report
