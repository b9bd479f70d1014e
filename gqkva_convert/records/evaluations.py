"""Measurements kept beside the weights that they were made of."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json, replace_json
from gqkva_convert.checkpoint.sidecars import EVALUATION
from gqkva_convert.errors import CheckpointError, OutputError
from gqkva_convert.records.report import versions

FORMAT_VERSION = 1
# What says that two results measure the same.
_SUBJECT = ("task", "data", "split", "against", "settings")


def describe_run() -> dict[str, Any]:
    """When and where a measurement was made, and with what."""
    return {
        "versions": versions(),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def machine() -> str:
    """Processor and cores, and GPUs where torch sees some."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not torch.cuda.is_available():
        return f"{processor()}, {cores} cores"
    count = torch.cuda.device_count()
    return f"{f'{count} x ' if count > 1 else ''}{torch.cuda.get_device_name()}"


def processor() -> str:
    """The processor's name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Measurements of a folder's weights; none where there are none.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = folder / EVALUATION
    if not path.is_file():
        return []
    data = read_json(path)
    results = data.get("results") if isinstance(data, dict) else None
    if not isinstance(results, list) or data.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path} is damaged or of another version; remove it and measure again")
    return [result for result in results if isinstance(result, dict)]


def result_keys(folder: Path) -> dict[str, str]:
    """What each measurement of a folder is of, as a short key, and the checksum of what was found."""
    return {_key(result): _checksum(result) for result in read_results(folder)}


def _key(result: dict[str, Any]) -> str:
    return _checksum([_resolved(result.get(part)) for part in _SUBJECT])


def _resolved(name: Any) -> Any:
    """A path as it is called everywhere; anything else as it is."""
    return str(Path(name).resolve()) if isinstance(name, str) and Path(name).exists() else name


def _checksum(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def remove_results(folder: Path, keys: Iterable[str]) -> None:
    """Forget measurements, by their keys."""
    found, unwanted = read_results(folder), set(keys)
    kept = [result for result in found if _key(result) not in unwanted]
    if len(kept) < len(found):
        _write(folder, kept)


def require_writable(folder: Path) -> None:
    """Refuse a folder that results cannot be kept in, before hours of measuring.

    Raises:
        OutputError: It cannot be written.
        CheckpointError: Its earlier results are damaged.
    """
    read_results(folder)
    scratch = folder / f".{EVALUATION}.partial"
    try:
        scratch.touch()
        scratch.unlink()
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}; use --no-save") from error


def add_results(folder: Path, results: list[dict[str, Any]]) -> None:
    """Keep measurements, in place of earlier ones of the same; the old file stays until they are written.

    Raises:
        OutputError: The folder cannot be written.
    """
    new = {_key(result) for result in results}
    kept = [
        result
        for result in read_results(folder)
        if _key(result) not in new and result.get("model_sha256") == results[0]["model_sha256"]
    ]
    _write(folder, [*kept, *results])


def _write(folder: Path, results: list[dict[str, Any]]) -> None:
    path = folder / EVALUATION
    try:
        replace_json(path, {"format_version": FORMAT_VERSION, "results": results})
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; use --no-save") from error
