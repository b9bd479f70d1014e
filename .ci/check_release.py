"""Refuse a tag that is not the package's version, or has no dated section in the changelog.

    python .ci/check_release.py vX.Y.Z

Needs no package.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    tag = sys.argv[1]
    version = re.findall(r'^__version__ = "(.+)"$', (ROOT / "gqkva_convert/_version.py").read_text(), re.M)[0]
    if tag != f"v{version}":
        sys.exit(f"the tag is {tag}, but gqkva_convert/_version.py says {version}: tag v{version}")
    heading = rf"^## {re.escape(version)} - \d{{4}}-\d{{2}}-\d{{2}}$"
    if not re.search(heading, (ROOT / "CHANGELOG.md").read_text(), re.M):
        sys.exit(f"CHANGELOG.md has no section '## {version} - YYYY-MM-DD': date it before tagging")
    print(f"{tag} can be released")


if __name__ == "__main__":
    main()
