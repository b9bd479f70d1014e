"""Licence and task that a source's own model card states, kept because the card itself stays behind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.sidecars import REPORT
from gqkva_convert.checkpoint.yamlfile import parse_yaml
from gqkva_convert.errors import CheckpointError

FIELDS = ("license", "license_name", "license_link", "language", "tags", "pipeline_tag")
_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_MOST_BYTES, _MOST_ENTRIES, _LONGEST = 1 << 20, 200, 500


def source_card(folder: Path) -> dict[str, Any] | None:
    """Read licence, language, tags and task from a checkpoint's card; None if it states none.

    A card that cannot be read states none. Of our own outputs, ``origin`` names what they were made from.
    """
    found: dict[str, Any] = {}
    earlier = _source_of(folder)
    if earlier is not None:
        found = stated_card(earlier.get("card"))
        found.setdefault("origin", {"name": earlier.get("name"), "revision": earlier.get("revision")})
    found.update(front_matter(folder / "README.md"))
    return found or None


def stated_card(card: Any) -> dict[str, Any]:
    """Return the parts of a source's card in a report that have the form they should."""
    if not isinstance(card, dict):
        return {}
    origin = card.get("origin")
    return {**_fields(card), **({"origin": origin} if isinstance(origin, dict) else {})}


# By hand: huggingface_hub.metadata_load reads a file of any size and raises whatever YAML does.
def front_matter(path: Path) -> dict[str, Any]:
    """Read the `FIELDS` of a card's front matter that hold text or lists of text."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8", errors="replace")
        block = _FRONT_MATTER.match(text)
        data = parse_yaml(block[1], str(path), CheckpointError) if block else None
    except (OSError, CheckpointError):
        return {}
    return _fields(data) if isinstance(data, dict) else {}


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    return {name: kept for name in FIELDS if (kept := _text(data.get(name))) is not None}


def _text(value: Any) -> str | list[str] | None:
    if isinstance(value, list):
        return [entry[:_LONGEST] for entry in value[:_MOST_ENTRIES] if isinstance(entry, str)] or None
    return value.strip()[:_LONGEST] if isinstance(value, str) and value.strip() else None


def _source_of(folder: Path) -> dict[str, Any] | None:
    """Return the source that a folder of ours names in its report."""
    if not (folder / REPORT).is_file():
        return None
    try:
        report = read_json(folder / REPORT)
    except CheckpointError:
        return None
    source = report.get("source") if isinstance(report, dict) else None
    return source if isinstance(source, dict) else None
