"""The finished steps of a recipe; a step is identified by its inputs and outputs, not by its name."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.digest import files_sha256
from gqkva_convert.checkpoint.jsonfile import read_json, replace_json
from gqkva_convert.checkpoint.sidecars import EVALUATION, MEASURED, REPORT
from gqkva_convert.data.names import DataName, exists
from gqkva_convert.errors import CheckpointError, RecipeError
from gqkva_convert.recipes.commands import CommandLine
from gqkva_convert.records.evaluation import remove_results, result_keys
from gqkva_convert.uptraining.settings import read_settings

STATE = "run.json"
FORMAT_VERSION = 1
# Data files that a task of lm-evaluation-harness names.
_DATA_FILE = re.compile(r"[^\s'\",\[\]{}]+\.(?:jsonl?|csv|parquet|txt)\b")
_INCLUDED = re.compile(r"^include:\s*(\S+)", re.MULTILINE)
_CODE = re.compile(r"!function\s+(\w+)\.")


@dataclass
class State:
    """Steps done, kept in a file of the recipe's folder."""

    folder: Path
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> State:
        """Read the state of a recipe's folder; empty if the folder is new.

        Raises:
            RecipeError: The file is damaged.
        """
        path = folder / STATE
        if not path.is_file():
            return cls(folder)
        try:
            data = read_json(path)
        except CheckpointError as error:
            raise _damaged(path) from error
        if not isinstance(data, dict) or data.get("format_version") != FORMAT_VERSION:
            raise RecipeError(f"{path} is of another version; use another --work folder")
        steps = data.get("steps")
        required = {"key", "done", "outputs"}
        if not isinstance(steps, dict) or not all(
            isinstance(entry, dict) and required <= set(entry) for entry in steps.values()
        ):
            raise _damaged(path)
        return cls(folder, steps)

    def write(self) -> None:
        """Write the state; the old file stays until the new one is complete."""
        replace_json(self.folder / STATE, {"format_version": FORMAT_VERSION, "steps": self.steps})

    def is_done(self, line: CommandLine, key: str) -> bool:
        """Return whether a step has run on its present inputs and its outputs still exist."""
        known = self.steps.get(line.step.name)
        if known is None or known["key"] != key or not known["done"]:
            return False
        if not all(
            exists(Path(path)) and (checksum is None or content(Path(path)) == checksum)
            for path, checksum in known["outputs"].items()
        ):
            return False
        measured = known.get("measured")
        return measured is None or measured.items() <= measured_by(line).items()

    def begun(self, line: CommandLine, key: str) -> float | None:
        """Return the time at which a step with the present inputs began but did not end; None without one."""
        known = self.steps.get(line.step.name)
        if known is None or known["key"] != key or known["done"]:
            return None
        found: float | None = known.get("begun")
        return found

    def made(self, path: str) -> bool:
        """Return whether a step of this recipe began to write a path."""
        return any(str(Path(path).resolve()) in known["outputs"] for known in self.steps.values())


def _damaged(path: Path) -> RecipeError:
    return RecipeError(
        f"{path} is damaged: what was done is not known; use another --work folder, or remove this one"
    )


def key_of(line: CommandLine, work: Path) -> str:
    """Return one checksum of a step's arguments and of the contents of every path among them.

    Args:
        line: The step.
        work: The recipe's folder, whose name is not part of the checksum.
    """
    step = line.step
    written = None if line.facts.writes is None else step.options.get(line.facts.writes)
    read = {
        f"{name} {number}" if number else name: content(path, line.facts.ignores)
        for name, value in _with_settings(step.options).items()
        if value is not written and name != "run_folder"  # an interrupted run leaves files there
        for number, path in enumerate(_paths(value))
        if exists(path)
    }
    if isinstance(step.accelerate, str) and exists(Path(step.accelerate)):
        read["accelerate"] = content(Path(step.accelerate))
    arguments = [text.replace(str(work), "${work}") for text in line.arguments]
    data = [step.command, arguments, step.accelerate, read]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def outputs_of(line: CommandLine) -> list[Path]:
    """Return the paths that a step writes.

    Raises:
        RecipeError: It does not say where.
    """
    facts, options = line.facts, line.step.options
    if facts.writes is not None:
        written = options.get(facts.writes)
        if written is None:
            raise RecipeError(f"step {line.step.name}: give {facts.writes}, the folder or file it writes")
        return [Path(str(written))]
    if facts.beside is None:
        return []
    folder = Path(line.arguments[0])
    # Of models that are no folder nothing is kept.
    return [folder / facts.beside] if options.get("save", True) and folder.is_dir() else []


def measured_by(line: CommandLine) -> dict[str, str]:
    """Return keys and checksums of all measurements of the folder that a step measures."""
    outputs = outputs_of(line) if line.facts.beside == EVALUATION else []
    return result_keys(outputs[0].parent) if outputs else {}


def forget_measured(line: CommandLine, known: dict[str, Any]) -> None:
    """Remove a step's earlier measurements, made with other settings, from its folder."""
    if known.get("measured") and outputs_of(line):
        remove_results(outputs_of(line)[0].parent, known["measured"])


def paths_of(line: CommandLine) -> set[Path]:
    """Return every path among a step's options, existing or not."""
    return {path for value in line.step.options.values() for path in _paths(value)}


def _with_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return a step's options with the data and teachers named in its files of settings and tasks."""
    asked = options.get("tasks")
    tasks = [path for path in _paths(asked) if path.suffix in (".yaml", ".yml") and exists(path)]
    if tasks:
        options = {**options, "questions": [name for path in tasks for name in _named_in(path)]}
    file = options.get("settings")
    if not isinstance(file, str) or not Path(file).is_file():
        return options
    settings = read_settings(Path(file))
    named = ("data", "held_out", "teacher")
    return {**{key: value for key, value in settings.items() if key in named}, **options}


def _named_in(task: Path, above: tuple[Path, ...] = ()) -> list[str]:
    """Return the files that a task's file names: questions, included tasks and Python code."""
    text = task.read_text(errors="replace")
    included = [task.parent / name.strip("'\"") for name in _INCLUDED.findall(text)]
    code = [task.parent / f"{module}.py" for module in _CODE.findall(text)]
    above = (*above, task)
    deeper = [path for path in included if path not in above and path.is_file()]
    inner = [name for path in deeper for name in _named_in(path, above)]
    return [*_DATA_FILE.findall(text), *map(str, (*included, *code)), *inner]


def _paths(value: Any) -> list[Path]:
    """Return possible paths in an option's value, also of several with commas between them."""
    values = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, str)]
    parts = [part for text in values for part in (text, *text.split(",")) if part]
    # Data may be a path with a configuration and a split behind it.
    return [Path(name) for part in parts for name in dict.fromkeys((part, DataName.read(part).name))]


def content(path: Path, ignored: frozenset[str] = MEASURED | {REPORT}) -> str:
    """Return the checksum of a file, or of a folder's files except hidden and ignored ones."""
    if path.is_file():
        return files_sha256({"": path})
    files = {
        name.as_posix(): file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        for name in [file.relative_to(path)]
        if not any(part.startswith(".") for part in name.parts) and name.as_posix() not in ignored
    }
    return files_sha256(files)
