"""JSON from untrusted files: repeated keys and damage are errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.damage import refuse_stand_in
from gqkva_convert.errors import CheckpointError


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON in which no object names a key twice.

    Args:
        text: The JSON.
        where: What it is, for the message.

    Raises:
        CheckpointError: It is not JSON, or a key is repeated.
    """

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                raise CheckpointError(f"{where} names {name!r} twice; the file is damaged")
            result[name] = value
        return result

    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON; the file is damaged, get or make it again") from error


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        CheckpointError: It is missing, unreadable, not JSON (says what it is instead), or repeats a key.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return parse_json(content, str(path))
    except CheckpointError:
        refuse_stand_in(path)
        raise


def write_json(path: Path, data: Any) -> None:
    """Write JSON as transformers does: indented by two, with a final newline."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def replace_json(path: Path, data: Any) -> None:
    """Write JSON over an older file, which stays as it is until the new one is complete."""
    scratch = path.with_name(f".{path.name}.new")
    try:
        write_json(scratch, data)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
