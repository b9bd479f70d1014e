"""Damage to files, drawn at random from a seed: bytes of any file, values of a JSON or YAML file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

# Values that code written for numbers, names or lists may stumble over.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 10**6, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "x" * 5000, "../../etc/passwd", "\0", "\ud800", "1", "None", "${work}", "__class__"),
    *([], {}, [None], [[]], [0] * 1000, {"": None}, {"a": {"b": {"c": []}}}, [{"a": 1}]),
)


def damaged_bytes(content: bytes, draw: Random) -> bytes:
    """Change a file as a disk, a broken download or an editor may."""
    data = bytearray(content)
    kind = draw.randrange(7)
    place = draw.randrange(len(data) + 1)
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        for _ in range(draw.randrange(1, 9)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
    elif kind == 2:
        data[place:place] = draw.randbytes(draw.randrange(1, 200))
    elif kind == 3:
        del data[place : place + draw.randrange(1, 200)]
    elif kind == 4:
        data[place:place] = data[draw.randrange(len(data) + 1) :][:200]
    elif kind == 5:
        return draw.choice(
            [b"", b"\0" * 64, b"<!DOCTYPE html><html>404</html>", b"null", b"[]", b"{}", b"\xff"]
        )
    else:
        # The beginning of a safetensors file, of a zip archive and of a pickle holds lengths.
        data[:8] = struct.pack("<Q", draw.choice([0, 1, 2, 8, 2**20, 2**32, 2**63, 2**64 - 1]))
    return bytes(data)


def damaged_json(content: bytes, draw: Random, keys: Callable[[str], bool] = lambda _: True) -> bytes:
    """Change one value of a JSON file, remove it, or give its key twice; only of keys that are asked for."""
    data = json.loads(content)
    places = [place for place in _places(data) if keys(str(place[1]))]
    if not places:
        return damaged_bytes(content, draw)
    parent, key = draw.choice(places)
    kind = draw.randrange(10)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        text = json.dumps(parent[key])
        mark = f"{json.dumps(key)}: {text}"
        return json.dumps(data).replace(mark, f"{mark}, {mark}", 1).encode()
    elif kind == 2 and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    elif kind == 3 and isinstance(parent, list):
        parent.insert(key, draw.choice(ODD))
    else:
        parent[key] = draw.choice(ODD)
    return json.dumps(data).encode()


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, dict):
        entries: list[tuple[Any, Any]] = list(data.items())
    elif isinstance(data, list):
        entries = list(enumerate(data[:50]))
    else:
        return
    for key, value in entries:
        yield data, key
        yield from _places(value)


def damage(path: Path, draw: Random) -> None:
    """Damage a file in place, as JSON in half of the trials where it is such."""
    content = path.read_bytes()
    if path.suffix == ".json" and draw.random() < 0.6:
        path.write_bytes(damaged_json(content, draw))
    elif path.suffix == ".safetensors" and draw.random() < 0.6:
        path.write_bytes(_damaged_header(content, draw))
    else:
        path.write_bytes(damaged_bytes(content, draw))


def _damaged_header(content: bytes, draw: Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = damaged_json(content[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]
