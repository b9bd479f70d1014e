"""What a recipe has done already: a step is known by what it reads and what it wrote, not by its name."""

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
from gqkva_convert.data.names import exists
from gqkva_convert.errors import CheckpointError, RecipeError
from gqkva_convert.recipes.commands import CommandLine
from gqkva_convert.records.evaluation import remove_results, result_keys
from gqkva_convert.uptraining.settings import read_settings

STATE = "run.json"
FORMAT_VERSION = 1
# Files of questions that a task of lm-evaluation-harness names.
_DATA_FILE = re.compile(r"[^\s'\",\[\]{}]+\.(?:jsonl?|csv|parquet|txt)\b")
_INCLUDED = re.compile(r"^include:\s*(\S+)", re.MULTILINE)
_CODE = re.compile(r"!function\s+(\w+)\.")


@dataclass
class State:
    """Steps done, kept in a file of the recipe's folder.

    Attributes:
        folder: The recipe's folder.
        steps: By name what was run, the key of what it read, and checksums of what it wrote.
    """

    folder: Path
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> State:
        """What was done in a folder; nothing where it is new.

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
        if not isinstance(steps, dict) or not all(map(_is_entry, steps.values())):
            raise _damaged(path)
        return cls(folder, steps)

    def write(self) -> None:
        """Keep it; the old file stays until the new one is complete."""
        replace_json(self.folder / STATE, {"format_version": FORMAT_VERSION, "steps": self.steps})

    def is_done(self, line: CommandLine, key: str) -> bool:
        """Whether a step has run on what it would read now, and what it wrote is still there."""
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
        """When a step began that reads what it would read now and did not end; None where there is none."""
        known = self.steps.get(line.step.name)
        if known is None or known["key"] != key or known["done"]:
            return None
        found: float | None = known.get("begun")
        return found

    def made(self, path: str) -> bool:
        """Whether a step of this recipe began to write a path."""
        return any(str(Path(path).resolve()) in known["outputs"] for known in self.steps.values())


def _damaged(path: Path) -> RecipeError:
    return RecipeError(
        f"{path} is damaged: what was done is not known; use another --work folder, or remove this one"
    )


def _is_entry(entry: Any) -> bool:
    """Whether an entry of the file says what all of them say."""
    return isinstance(entry, dict) and {"key", "done", "outputs"} <= set(entry)


def key_of(line: CommandLine, work: Path) -> str:
    """What a step does and reads, as one checksum: its arguments, and the contents of every path among them.

    Args:
        line: The step.
        work: The recipe's folder, whose name does not count: it may be called from elsewhere.
    """
    step = line.step
    written = None if line.facts.writes is None else step.options.get(line.facts.writes)
    read = {
        f"{name} {number}" if number else name: content(path, line.facts.ignores)
        for name, value in _with_settings(step.options).items()
        if value is not written and name != "run_folder"  # what a run has left is no reason to begin anew
        for number, path in enumerate(_paths(value))
        if exists(path)
    }
    if isinstance(step.accelerate, str) and exists(Path(step.accelerate)):
        read["accelerate"] = content(Path(step.accelerate))
    arguments = [text.replace(str(work), "${work}") for text in line.arguments]
    data = [step.command, arguments, step.accelerate, read]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def outputs_of(line: CommandLine) -> list[Path]:
    """What a step writes.

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
    """Keys and checksums of all that was measured of the folder that a step measures."""
    outputs = outputs_of(line) if line.facts.beside == EVALUATION else []
    return result_keys(outputs[0].parent) if outputs else {}


def forget_measured(line: CommandLine, known: dict[str, Any]) -> None:
    """Take what a step measured with other settings out of the folder that it is about to measure again."""
    if known.get("measured") and outputs_of(line):
        remove_results(outputs_of(line)[0].parent, known["measured"])


def paths_of(line: CommandLine) -> set[Path]:
    """Every path among a step's options, whether it is there or not."""
    return {path for value in line.step.options.values() for path in _paths(value)}


def _with_settings(options: dict[str, Any]) -> dict[str, Any]:
    """A step's options, and what files of settings and tasks that it names say of data and teachers."""
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
    """Files that a file of a task names: its questions, the tasks it includes, and Python code beside it."""
    text = task.read_text(errors="replace")
    included = [task.parent / name.strip("'\"") for name in _INCLUDED.findall(text)]
    code = [task.parent / f"{module}.py" for module in _CODE.findall(text)]
    above = (*above, task)
    deeper = [path for path in included if path not in above and path.is_file()]
    inner = [name for path in deeper for name in _named_in(path, above)]
    return [*_DATA_FILE.findall(text), *map(str, (*included, *code)), *inner]


def _paths(value: Any) -> list[Path]:
    """What may be paths in an option's value; some options take several with commas between them."""
    values = [part for part in (value if isinstance(value, list) else [value]) if isinstance(part, str)]
    return [Path(part) for text in values for part in dict.fromkeys((text, *text.split(","))) if part]


def content(path: Path, ignored: frozenset[str] = MEASURED | {REPORT}) -> str:
    """Return the checksum of a file, or of what a folder holds: without hidden files, and some others."""
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
