"""Files that people write (plans, recipes, settings): bounded in size, and YAML read without surprises."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from gqkva_convert.errors import GqkvaError, first_line
from gqkva_convert.units import human_bytes

# The plan of a model of 1,000 blocks with 128 heads each takes 4 MB.
MOST_BYTES = 16 << 20
# PyYAML reads 150 kB a second; the longest recipe here has 6 kB.
MOST_YAML_BYTES = 1 << 20
# Aliases of aliases grow by their powers.
MOST_PARTS = 100_000
# Halves of characters cannot be written, nor be part of a file's name.
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_text(path: Path, error: type[GqkvaError], most: int = MOST_BYTES) -> str:
    """Read a text file that a person wrote.

    Args:
        path: The file.
        error: Raised where it is missing, no file, no UTF-8 text, or larger than ``most``.
        most: Its largest size in bytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise error(f"{path} is larger than {human_bytes(most)}; is it the file that you mean?")
        return data.decode("utf-8")
    except (OSError, ValueError) as cause:  # a name with a null byte is a ValueError, too
        reason = cause.strerror or cause if isinstance(cause, OSError) else first_line(cause)
        if isinstance(cause, UnicodeDecodeError):
            reason = "not UTF-8 text"
        raise error(f"{path}: cannot be read: {reason}") from cause


def read_yaml(path: Path, error: type[GqkvaError]) -> Any:
    """Read a YAML file as `parse_yaml` does, up to `MOST_YAML_BYTES`."""
    return parse_yaml(read_text(path, error, MOST_YAML_BYTES), str(path), error)


def parse_yaml(text: str, where: str, error: type[GqkvaError]) -> Any:
    """Parse YAML of plain data in which no mapping names a key twice.

    Args:
        text: The YAML.
        where: What it is, for the message.
        error: Raised where it is not YAML, holds itself, or has more than `MOST_PARTS` parts once its
            aliases are written out.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count_parts(node, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark or cause.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise error(f"{where}{line}: not YAML: {cause.problem or cause.context}") from cause
    except (yaml.YAMLError, RecursionError) as cause:
        raise error(f"{where}: not YAML: {first_line(cause)}") from cause
    except (ValueError, LookupError, TypeError, AttributeError) as cause:
        # PyYAML's own errors where a tag or a form, such as a date, promises what the text does not hold.
        raise error(f"{where}: not YAML: a value is not what its form says: {first_line(cause)}") from cause
    finally:
        if loader is not None:
            loader.dispose()


def _count_parts(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return the parts of a node with all aliases written out; ``known`` holds those of nodes seen before."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise yaml.MarkedYAMLError(problem="it holds itself", problem_mark=node.start_mark)
        return found
    known[id(node)] = None
    parts = 1
    if isinstance(node, yaml.SequenceNode):
        parts += sum(_count_parts(part, known) for part in node.value)
    elif isinstance(node, yaml.MappingNode):
        parts += sum(_count_parts(part, known) for pair in node.value for part in pair)
    if parts > MOST_PARTS:
        said = f"more than {MOST_PARTS:,} parts with its aliases written out"
        raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
    known[id(node)] = parts
    return parts


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain data; a mapping that names a key twice is an error."""

    def construct_scalar(self, node: Any) -> Any:
        found = super().construct_scalar(node)
        if _SURROGATE.search(found):
            raise yaml.MarkedYAMLError(problem="half a character", problem_mark=node.start_mark)
        return found

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(
                    problem="a key is text or a number", problem_mark=key_node.start_mark
                )
            if key in seen:
                said = f"{key!r} stands there twice"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=key_node.start_mark)
            seen.add(key)
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found
