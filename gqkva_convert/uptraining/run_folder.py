"""The folder of a run: its settings, its metrics, its checkpoints; what a killed run resumes from."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.jsonfile import read_json, replace_json
from gqkva_convert.checkpoint.publish import locked, writing
from gqkva_convert.errors import CheckpointError, OutputError, TrainingError
from gqkva_convert.plots import pyplot, save_plot

SETTINGS, METRICS, CURVE = "settings.json", "metrics.jsonl", "loss.png"
CHECKPOINTS = "checkpoints"
_STEP = re.compile(r"step-(\d+)$")


class RunFolder:
    """The folder in which a run keeps its settings, metrics and checkpoints.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS

    @contextmanager
    def held(self, *, is_main: bool) -> Iterator[None]:
        """Keep other runs out of the folder.

        Args:
            is_main: Whether this is the run's main process, which keeps the lock.

        Raises:
            OutputError: Another run is in it, or it cannot be written.
        """
        with writing(self.path):
            if not is_main:
                yield
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path):
                yield

    def require_free(self, *, overwrite: bool) -> None:
        """Refuse a folder that a new run cannot have.

        Raises:
            OutputError: It holds a run already, or something else.
        """
        if (self.path / SETTINGS).is_file() and self.metrics() and not overwrite:
            raise OutputError(
                f"{self.path} holds a run; go on with it with --resume, or start anew with --overwrite"
            )
        if self.path.exists() and not (self.path / SETTINGS).is_file() and not self._is_barely_begun():
            raise OutputError(f"{self.path} is not the folder of a run; choose another with --run-folder")

    def _is_barely_begun(self) -> bool:
        """Return whether the folder holds no more than what a run makes before its settings are written."""
        made = {CHECKPOINTS, f".{SETTINGS}.new"}
        return {path.name for path in self.path.iterdir()} <= made and not self._complete()

    def begin(self, settings: dict[str, Any], *, overwrite: bool) -> None:
        """Make the folder of a new run; an earlier one in it is gone then.

        Raises:
            OutputError: As `require_free`.
        """
        self.require_free(overwrite=overwrite)
        shutil.rmtree(self.path, ignore_errors=True)
        self.checkpoints.mkdir(parents=True)
        replace_json(self.path / SETTINGS, settings)

    def settings(self) -> dict[str, Any]:
        """Read the settings of the run in the folder.

        Raises:
            TrainingError: There is none.
        """
        if not (self.path / SETTINGS).is_file():
            raise TrainingError(f"{self.path} holds no run to go on with; start it without --resume")
        try:
            found = read_json(self.path / SETTINGS)
        except CheckpointError:
            found = None
        if not isinstance(found, dict):
            raise TrainingError(f"{self.path / SETTINGS} is damaged; start anew with --overwrite")
        return found

    def finish(self, result: str) -> None:
        """Note that the run is done and where its result is, unless somebody removed the folder meanwhile."""
        if (self.path / SETTINGS).is_file():
            replace_json(self.path / SETTINGS, {**self.settings(), "finished": result})

    def latest(self) -> Path | None:
        """Return the last complete checkpoint."""
        found = self._complete()
        return found[-1] if found else None

    def _complete(self) -> list[Path]:
        found = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return sorted(path for path in found if _STEP.fullmatch(path.name))

    def scratch_path(self, step: int) -> Path:
        """Return the path under which every process writes the checkpoint of a step."""
        return self.checkpoints / f".step-{step:09d}.new"

    def scratch(self, step: int) -> Path:
        """Make the empty folder in which the checkpoint of a step is written."""
        path = self.scratch_path(step)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def of_step(self, step: int) -> Path | None:
        """Return the checkpoint of a step, if it is kept."""
        return next((path for path in self._complete() if int(path.name.split("-")[1]) == step), None)

    def keep(self, scratch: Path, limit: int, best: int) -> Path:
        """Give a complete checkpoint its name, and remove the oldest beyond a limit but the best."""
        for file in scratch.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:  # or a power cut leaves what only looks complete
                    os.fsync(written.fileno())
        path = self.checkpoints / scratch.name[1 : -len(".new")]
        shutil.rmtree(path, ignore_errors=True)
        scratch.rename(path)
        for old in self._complete()[:-limit]:
            if old != self.of_step(best):
                shutil.rmtree(old, ignore_errors=True)
        return path

    def clear_checkpoints(self) -> None:
        """Remove all checkpoints, once the result is written."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def write_metrics(self, entry: dict[str, Any]) -> None:
        """Add a line to the metrics."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read all metrics so far; skips a line that was cut off by a crash, or is none of ours."""
        path = self.path / METRICS
        found = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and {"step", "tokens"} <= set(entry):
                found.append(entry)
        return found

    def rewind(self, step: int) -> None:
        """Forget metrics of steps after a checkpoint's."""
        kept = [entry for entry in self.metrics() if entry["step"] <= step]
        scratch = self.path / f".{METRICS}.new"
        scratch.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        scratch.replace(self.path / METRICS)

    def draw(self, teacher_loss: float | None, what: str) -> None:
        """Draw the losses over tokens, as a PNG beside the metrics."""
        found = self.metrics()
        trained = [(entry["tokens"], entry["loss"]) for entry in found if "loss" in entry]
        held = [(entry["tokens"], entry["held_out_loss"]) for entry in found if "held_out_loss" in entry]
        figure, axes = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
        for axis, points, title in (
            (axes[0], trained, f"training loss ({what})"),
            (axes[1], held, "held-out loss"),
        ):
            if points:
                axis.plot(*zip(*points, strict=True), marker="o" if points is held else None, markersize=3)
            axis.set_xlabel("tokens")
            axis.set_title(title)
        axes[0].set_yscale("log")
        if teacher_loss is not None:
            axes[1].axhline(teacher_loss, linestyle="--", color="gray", label="original")
            axes[1].legend()
        save_plot(figure, self.path / CURVE)
