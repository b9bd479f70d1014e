"""The order of the packages: each imports itself and what stands to its left."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from layers import ORDER

import gqkva_convert

PACKAGE = Path(gqkva_convert.__file__).parent
HEAVY = ("torch", "transformers", "accelerate", "huggingface_hub")


def imported(path: Path) -> set[str]:
    """Parts of gqkva_convert that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gqkva_convert."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "gqkva_convert":
            found.update(alias.name for alias in node.names if (PACKAGE / alias.name).exists())
    return found


def forbidden(path: Path) -> set[str]:
    """Parts of gqkva_convert that a file imports although they do not stand to its left."""
    parts = path.relative_to(PACKAGE).parts
    if len(parts) == 1 and parts[0].removesuffix(".py") not in ORDER[0]:
        return set()  # the package's own front doors reach everything
    own = parts[0].removesuffix(".py")
    place = next(place for place, names in enumerate(ORDER) if own in names)
    allowed = {name for names in ORDER[:place] for name in names} | {own}
    return imported(path) - allowed


def test_packages_import_only_what_stands_to_their_left() -> None:
    """A cycle, or maths that knows about disks, makes the next change twice as hard."""
    files = sorted(PACKAGE.rglob("*.py"))
    assert {str(path.relative_to(PACKAGE)): names for path in files if (names := forbidden(path))} == {}


def test_every_package_has_its_place() -> None:
    """A new package must be given a place, or the rule would not see it."""
    packages = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert sorted([*packages, *ORDER[0]]) == sorted(name for names in ORDER for name in names)


def test_tests_stand_where_the_package_has_what_they_test() -> None:
    """Whoever changes a package finds its tests under the same name; `reliability` goes through all."""
    here = Path(__file__).parent
    tested = {file.parent.relative_to(here) for file in here.rglob("test_*.py")} - {
        Path(),
        Path("reliability"),
    }
    packages = {file.parent.relative_to(PACKAGE) for file in PACKAGE.rglob("__init__.py")} - {Path()}
    assert tested <= packages
    assert {path for path in packages if len(path.parts) == 1} <= {Path(path.parts[0]) for path in tested}


@pytest.mark.parametrize("command", [["--help"], ["convert", "--help"], ["inspect", "MODEL"]])
def test_commands_that_need_no_torch_do_not_load_it(command: list[str], llama: Path) -> None:
    """Loading torch takes seconds; a conversion spends them on the shapes that the model must have."""
    arguments = [str(llama) if part == "MODEL" else part for part in command]
    script = (
        "import sys\n"
        "from gqkva_convert.cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "LOADED"
