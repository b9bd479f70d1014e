"""`gqkva run`: run a recipe step by step; steps that are up to date are skipped."""

from __future__ import annotations

import contextlib
import datetime
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.publish import locked
from gqkva_convert.errors import GqkvaError, OutputError, RecipeError
from gqkva_convert.recipes.commands import CommandLine, command_line
from gqkva_convert.recipes.dry_run import dry_run as estimate
from gqkva_convert.recipes.expand import expand
from gqkva_convert.recipes.facts import FACTS
from gqkva_convert.recipes.schema import Recipe, read_recipe, unknown
from gqkva_convert.recipes.state import (
    State,
    content,
    forget_measured,
    key_of,
    measured_by,
    outputs_of,
    paths_of,
)
from gqkva_convert.records.environment import versions

LOG = "commands.sh"
# Told of each step before it runs: its line, its number, how many there are, and whether it is done already.
Watch = Callable[[CommandLine, int, int, bool], None]
# Runs a step in this process.
Call = Callable[[CommandLine], Any]


@dataclass(frozen=True)
class Prepared:
    """A recipe, checked."""

    path: Path
    recipe: Recipe
    lines: tuple[CommandLine, ...]
    work: Path


def call_function(line: CommandLine) -> Any:
    """Run a step by calling the public function of its command's name."""
    return line.facts.call(**line.keywords())


def run(
    recipe: str | Path,
    changes: Iterable[str] = (),
    *,
    work: str | Path | None = None,
    begin_at: str | None = None,
    dry_run: bool = False,
    here: bool = False,
    watch: Watch | None = None,
    call: Call = call_function,
) -> dict[str, Any]:
    """Run the steps of a recipe that are not done.

    A step is skipped where its options, the contents of all files and folders that it reads, and what it
    wrote are as when it last ran. One that was interrupted resumes where it can.

    Args:
        recipe: The YAML file.
        changes: ``variable=value`` or ``step.option=value``.
        work: Folder of the results; None for ``runs/`` and the recipe's name.
        begin_at: Name of a step that runs again, with all behind it; of a repeated one, all repetitions.
        dry_run: Estimate the steps; run and download nothing.
        here: Reckon a dry run with this machine, not with the GPUs that the recipe asks for.
        watch: Told of each step before it runs.
        call: Runs a step; by default the public function of its name.

    Returns:
        JSON data: what each step ran, how long it took, and whether it was skipped (``left_out``); of a dry
        run what each would take.

    Raises:
        RecipeError: The recipe is wrong; says where.
        GqkvaError: As the step that failed; what was done before it stays done.
    """
    prepared = prepare(Path(recipe), changes, None if work is None else Path(work))
    _require_step(prepared, begin_at)
    names = {"recipe": str(prepared.path), "work": str(prepared.work)}
    if dry_run:
        return {**names, **estimate(prepared.recipe, prepared.lines, here=here)}
    if here:
        raise RecipeError("--here goes with --dry-run")
    return {**names, "steps": _run_steps(prepared, begin_at, watch, call)}


def prepare(path: Path, changes: Iterable[str], work: Path | None) -> Prepared:
    """Read and check a recipe; nothing runs.

    Raises:
        RecipeError: It is wrong; says where.
    """
    folder = work or Path("runs") / path.stem
    recipe = read_recipe(path, FACTS)
    lines = tuple(command_line(step) for step in expand(recipe, changes, folder))
    written: dict[Path, str] = {}
    for line in lines:
        _check(line, written)
        if line.facts.writes is None:
            continue
        for out in outputs_of(line):
            if out in written:
                raise RecipeError(f"steps {written[out]} and {line.step.name} both write {out}")
            written[out] = line.step.name
        if line.step.options.get("dry_run"):
            raise RecipeError(f"step {line.step.name}: a dry run writes nothing; leave dry_run out")
    return Prepared(path, recipe, lines, folder)


def _check(line: CommandLine, written: Collection[Path]) -> None:
    """Refuse options that the step's command would refuse.

    Raises:
        RecipeError: Names the step.
    """
    try:
        if line.facts.check is not None:
            line.facts.check(line.values(), written)
    except GqkvaError as error:
        raise RecipeError(f"step {line.step.name}: {error}") from error


def _require_step(prepared: Prepared, begin_at: str | None) -> None:
    """Refuse a step to begin at that the recipe does not have.

    Raises:
        RecipeError: It is not there; names the nearest.
    """
    names = dict.fromkeys(
        name for line in prepared.lines for name in (line.step.name, line.step.repeats) if name
    )
    if begin_at is not None and begin_at not in names:
        raise RecipeError(unknown("step", begin_at, names))


def _run_steps(
    prepared: Prepared, begin_at: str | None, watch: Watch | None, call: Call
) -> list[dict[str, Any]]:
    forced = False
    try:
        prepared.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {prepared.work}: {error.strerror}; give --work") from error
    results: list[dict[str, Any]] = []
    written: set[Path] = set()
    with locked(prepared.work):
        state = State.read(prepared.work)
        for number, line in enumerate(prepared.lines, 1):
            forced = forced or (begin_at is not None and begin_at in (line.step.name, line.step.repeats))
            key = key_of(line, prepared.work)
            done = not (forced or paths_of(line) & written) and state.is_done(line, key)
            if watch is not None:
                watch(line, number, len(prepared.lines), done)
            if not done:
                _run_step(prepared, state, line, key, forced, call)
                written |= {path for path in outputs_of(line) if line.facts.writes is not None}
            results.append({**state.steps[line.step.name], "name": line.step.name, "left_out": done})
    return results


def _run_step(
    prepared: Prepared, state: State, line: CommandLine, key: str, forced: bool, call: Call
) -> None:
    outputs = outputs_of(line)
    actual = _continued(state, line, key, outputs, forced)
    earlier = state.steps.get(line.step.name, {})
    resumes = bool(actual.step.options.get("resume"))
    entry: dict[str, Any] = {
        "command": str(actual),
        "key": key,
        "done": False,
        "begun": earlier["begun"] if resumes else time.time(),
        "outputs": {str(path.resolve()): None for path in outputs},
    }
    forget_measured(line, earlier)
    before = measured_by(line)
    state.steps[line.step.name] = entry
    state.write()
    started = datetime.datetime.now(datetime.timezone.utc)
    clock = time.monotonic()
    if line.step.accelerate is None:
        _in_process(actual, call)
    else:
        _launched(actual)
    entry["seconds"] = round(time.monotonic() - clock, 2)
    entry["started"] = started.isoformat(timespec="seconds")
    entry["versions"] = versions()
    for path in outputs:
        if not path.exists():
            raise RecipeError(f"step {line.step.name} did not write {path}")
        if line.facts.is_summed:
            entry["outputs"][str(path.resolve())] = content(path)
    measured = measured_by(line)
    if measured:
        entry["measured"] = {name: found for name, found in measured.items() if before.get(name) != found}
    # Running it may have changed what it reads: a folder it measures gets files beside the weights.
    state.steps[line.step.name] = {**entry, "done": True, "key": key_of(line, prepared.work)}
    state.write()
    replaces = bool(actual.step.options.get("overwrite"))
    _log(prepared, line.with_options(overwrite=True) if replaces else line, entry)


def _continued(state: State, line: CommandLine, key: str, outputs: list[Path], forced: bool) -> CommandLine:
    """Return the line with options to resume it, or to replace the recipe's earlier output."""
    if line.facts.writes is None:
        return line
    out = outputs[0]
    run_folder = Path(str(line.step.options.get("run_folder") or out.with_name(f"{out.name}-run")))
    begun = state.begun(line, key)
    if begun is not None and not forced and _is_unfinished(line, run_folder, begun):
        return _resumed(line)
    if state.made(str(out)) and (out.exists() or run_folder.exists()) and line.has("overwrite"):
        return line.with_options(overwrite=True)
    return line


def _is_unfinished(line: CommandLine, run_folder: Path, begun: float) -> bool:
    """Return whether a run folder holds a training that began with the step and can resume."""
    settings = run_folder / "settings.json"
    if not line.has("resume") or not settings.is_file():
        return False
    if settings.stat().st_mtime < begun:
        return False  # of an earlier training, with other settings perhaps
    found = read_json(settings)
    return isinstance(found, dict) and "finished" not in found


def _resumed(line: CommandLine) -> CommandLine:
    """Return the line that resumes a training run, with the settings it began with."""
    kept = {option.name for option in line.options if option.is_argument} | {"run_folder"}
    dropped = {name: None for name in line.step.options if name not in kept}
    return line.with_options(**dropped, resume=True)


def _in_process(line: CommandLine, call: Call) -> None:
    import gc

    call(line)
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _launched(line: CommandLine) -> None:
    """Run a step under `accelerate launch`; an interrupt reaches it as well, and it is waited for."""
    process = subprocess.Popen(line.launched(), stdout=_stdout())
    try:
        code = process.wait()
    except BaseException:
        with contextlib.suppress(KeyboardInterrupt):
            process.wait(timeout=60)
        process.kill()
        raise
    if code:
        raise RecipeError(f"step {line.step.name} ended with exit code {code}; what it said stands above")


def _stdout() -> int | None:
    """Return the standard output for a child process: stderr while a caller redirects ours."""
    if sys.stdout is sys.__stdout__:
        return None
    try:
        return sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # a stream in memory
        return None


def _log(prepared: Prepared, line: CommandLine, entry: dict[str, Any]) -> None:
    """Append the step to a shell script that repeats the recipe."""
    path = prepared.work / LOG
    if not path.exists():
        said = prepared.recipe.description.strip().splitlines()
        path.write_text("".join(f"# {part}\n" for part in said) + "set -e\n", encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        ran = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
        file.write(f"\n# {line.step.name}: {entry['started']}, {entry['seconds']} s; {ran}\n{line}\n")
        for name, checksum in entry["outputs"].items():
            if checksum is not None:
                file.write(f"# {name}: contents {checksum}\n")
