"""Commands as the documentation shows them: fenced blocks, and what a block says it needs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PROGRAMS = ("gqkva", "pip", "accelerate", "python")

_BLOCK = re.compile(
    r"(?:^<!-- needs: (?P<needs>[^\n]+) -->\n+)?^(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class ShownBlock:
    """A fenced block.

    Attributes:
        page: Where it stands.
        line: Line of the page on which the block begins.
        language: What stands behind the fence.
        text: What it holds.
        needs: What it takes to run it here, as the comment before it says; None where nothing.
    """

    page: Path
    line: int
    language: str
    text: str
    needs: str | None

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """Words of its lines that begin with one of `PROGRAMS`; what follows `&&` is one more."""
        lines = self.text.replace("\\\n", " ").splitlines()
        found = [part.split() for line in lines for part in _parts(line)]
        return tuple(tuple(words) for words in (_words(" ".join(part)) for part in found) if words)

    @property
    def is_python(self) -> bool:
        return self.language.strip() == "python"


def _parts(line: str) -> list[str]:
    if not line.startswith(tuple(f"{program} " for program in PROGRAMS)):
        return []
    return [part.strip() for part in line.split("&&")]


def _words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def shown_blocks(page: Path) -> Iterator[ShownBlock]:
    """Blocks of a page that hold commands or Python."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("fence")) + 1
        block = ShownBlock(page, line, found["language"], found["text"], found["needs"])
        if block.is_python or block.commands:
            yield block
