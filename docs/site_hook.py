"""Hooks of mkdocs: add files from outside docs/ to the site, refuse pages that load from elsewhere.

Links lead where they lead on GitHub: links out of docs/ are rewritten to the same file in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Folder of the site that holds files from outside docs/.
OUTSIDE = "repository"
TAKEN = (
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "recipes/README.md",
    "recipes/*.yaml",
    "recipes/*/*.yaml",
    "recipes/demo/train.py",
)

_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)")
_FOREIGN = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=.?(?:https?:)?//|<link[^>]*stylesheet[^>]*//")


def on_files(files: Any, config: Any) -> Any:
    """Add the files from outside docs/."""
    for pattern in TAKEN:
        for path in sorted(ROOT.glob(pattern)):
            place = f"{OUTSIDE}/{path.relative_to(ROOT).as_posix()}"
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links that lead out of docs/ or back into it."""
    here = page.file.src_uri
    source = here.removeprefix(f"{OUTSIDE}/") if here.startswith(f"{OUTSIDE}/") else f"docs/{here}"

    def turned(link: re.Match[str]) -> str:
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        inside = wanted.startswith("docs/")
        place = wanted.removeprefix("docs/") if inside else f"{OUTSIDE}/{wanted}"
        return link[1] + posixpath.relpath(place, posixpath.dirname(here) or ".")

    return _LINK.sub(turned, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would load something from elsewhere."""
    found = _FOREIGN.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri} would fetch from elsewhere: {found[0]}")
    return output
