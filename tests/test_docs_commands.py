"""Every command that the documentation shows parses, and runs where it needs nothing but this package.

A block that needs more says so in a comment before it, which readers do not see:
``<!-- needs: network, a 7B model -->``. All others are run by ``pytest -m slow tests/test_docs_commands.py``,
page by page, in an empty folder with the recipes beside it.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from shown_commands import PAGES, ROOT, ShownBlock, mentioned_commands, shown_blocks

from gqkva_convert import COMMANDS
from gqkva_convert.cli import app
from gqkva_convert.cli.derived import derived_command

BLOCKS = [block for page in PAGES for block in shown_blocks(page)]
RUNNABLE = sorted({block.page for block in BLOCKS if block.needs is None})

INTERPRETED = {
    "gqkva": [sys.executable, "-m", "gqkva_convert"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
    "python": [sys.executable],
}


def place(block: ShownBlock) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def parse_gqkva(words: tuple[str, ...]) -> None:
    """Let the command line convert every value; nothing of the command runs."""
    if words and words[0] in COMMANDS:
        derived_command(words[0]).make_context(words[0], list(words[1:])).close()
        return
    root = typer.main.get_command(app)
    options = {option for parameter in root.params for option in parameter.opts} | {"--help"}
    assert words
    assert set(words) <= options, f"no command or option {words[0]}"


def is_elsewhere(words: tuple[str, ...]) -> bool:
    """Whether it installs something, tests, or is another program's."""
    return words[0] in ("pip", "pytest") or (words[:2] == ("python", "-m") and words[2] != "gqkva_convert")


def parse(words: tuple[str, ...]) -> None:
    program, *rest = words
    if program == "accelerate":
        assert rest[0] == "launch"
        after = rest.index("-m")
        assert rest[after + 1] == "gqkva_convert"
        files = [rest[at + 1] for at, word in enumerate(rest[:after]) if word == "--config_file"]
        assert all((ROOT / file).exists() for file in files)
        parse_gqkva(tuple(rest[after + 2 :]))
    elif program == "python" and rest[0] == "-m":
        if rest[1] == "gqkva_convert":  # other programs' modules are in marked blocks: theirs to check
            parse_gqkva(tuple(rest[2:]))
    elif program == "python":
        assert (ROOT / rest[0]).is_file()
    elif program == "gqkva":
        parse_gqkva(tuple(rest))
    elif program == "pip":
        asked = {
            extra
            for word in rest
            for found in re.findall(r"\[([\w,]+)\]", word)
            for extra in found.split(",")
        }
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert asked <= set(extras)
    else:
        assert program == "pytest", f"{program} is not checked here"


def fault_of(words: tuple[str, ...]) -> str | None:
    """Say why a command does not parse, or None where it does."""
    try:
        parse(words)
    except Exception as error:
        describe = getattr(error, "format_message", error.__str__)
        return str(describe()) or type(error).__name__
    return None


def test_every_command_shown_parses() -> None:
    """Users paste from these pages; a typo costs them the evening."""
    shown = [(place(block), words) for block in BLOCKS for words in block.commands]
    assert shown
    assert {(where, " ".join(words)): fault for where, words in shown if (fault := fault_of(words))} == {}


def unknown_in(command: str, rest: list[str]) -> set[str]:
    """The command itself, or those of its options, that do not exist."""
    if command not in COMMANDS:
        return {command}
    parameters: Any = derived_command(command).params
    options = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
    return {word for word in rest if word.startswith("--")} - options - {"--help"}


def test_commands_in_the_text_exist() -> None:
    """They name a command and options, though not all of its arguments."""
    mentioned = [(name(page), words) for page in PAGES for words in mentioned_commands(page)]
    assert mentioned
    assert {
        (where, " ".join(words)): unknown
        for where, words in mentioned
        if (unknown := unknown_in(words[1], list(words[2:])))
    } == {}


def test_python_shown_is_python() -> None:
    """Placeholders are for prose."""
    for block in BLOCKS:
        if block.is_python:
            ast.parse(block.text, filename=place(block))


def test_what_runs_elsewhere_says_what_it_needs() -> None:
    """An installation and other programs are never tried here, so that their blocks must be marked."""
    unmarked = [
        place(block)
        for block in BLOCKS
        if block.needs is None and any(is_elsewhere(words) for words in block.commands)
    ]
    assert unmarked == []


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_commands_without_a_mark_run(page: Path, tmp_path: Path) -> None:
    """In order, one after the other, as a newcomer would type them."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "GQKVA_CACHE": str(tmp_path / "cache"),
    }
    for block in shown_blocks(page):
        if block.needs is not None:
            continue
        lines = [(sys.executable, "-c", block.text)] if block.is_python else list(block.commands)
        for words in lines:
            whole = [*INTERPRETED.get(words[0], [words[0]]), *words[1:]]
            done = subprocess.run(
                whole, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, f"{place(block)}: {' '.join(words)}\n{done.stdout}\n{done.stderr}"
