"""Commands in the documentation: fenced blocks, and the requirements that they state."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
# Pages whose blocks all need the same.
NEEDS = {
    ROOT / "docs" / "bench.md": "converted models and their originals",
    ROOT / "docs" / "benchmarks.md": "a checkout, disks and hours",
}
PROGRAMS = ("gqkva", "pip", "accelerate", "python")

_BLOCK = re.compile(
    r"(?:^ *<!-- needs: (?P<needs>[^\n]+) -->\n+)?"
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
_SETTINGS = re.compile(r"^(?:[A-Z_]+=\S* )+")
_INLINE = re.compile(r"(?<!`)`(gqkva [a-z][^`\n]*)`(?!`)")


@dataclass(frozen=True)
class ShownBlock:
    """A fenced block.

    Attributes:
        page: Page that holds it.
        line: Line of the page on which the block begins.
        language: Language that the fence names.
        text: Its content.
        needs: Requirements that the comment above it states; None without one.
    """

    page: Path
    line: int
    language: str
    text: str
    needs: str | None

    @property
    def commands(self) -> tuple[tuple[str, ...], ...]:
        """The arguments of each line that begins with one of `PROGRAMS`; `&&` begins another command."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return tuple(tuple(shlex.split(part, comments=True)) for line in lines for part in _parts(line))

    @property
    def is_python(self) -> bool:
        return self.language.strip() == "python"


def _parts(line: str) -> list[str]:
    line = _SETTINGS.sub("", line)
    if not line.startswith(tuple(f"{program} " for program in PROGRAMS)):
        return []
    return line.split("&&")


def shown_blocks(page: Path) -> Iterator[ShownBlock]:
    """Yield the blocks of a page that hold commands or Python."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("fence")) + 1
        inside = re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
        block = ShownBlock(page, line, found["language"], inside, found["needs"] or NEEDS.get(page))
        if block.is_python or block.commands:
            yield block


def mentioned_commands(page: Path) -> list[tuple[str, ...]]:
    """Return the arguments of `gqkva` commands in running text, which may omit values."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    return [tuple(shlex.split(found)) for found in _INLINE.findall(text)]
