"""Commands that write a folder, and what may stand there: for tests that kill, race and fill disks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from warm_children import Children, Ended

# Reports hold times and paths; all other files are the same each time.
REPORTS = ("gqkva_report.json", "gguf_report.json", "gqkva_training.json")
CALIBRATED = "--calibration {whole}/data.jsonl --calibration-samples 4 --calibration-length 8"


@dataclass(frozen=True)
class Scene:
    """A command that writes `out`.

    Attributes:
        command: Its words; {whole} is the folder of what is read, {out} the target.
        again: What is run after a kill where the folder of a run is there; by default the same.
        replaces: The folder in {whole} that stands under the target's name before.
    """

    command: str
    again: str = ""
    replaces: str = ""

    def words(self, whole: Path, out: Path) -> list[str]:
        """Return the command to run now."""
        continues = self.again and (out.with_name(f"{out.name}-run") / "settings.json").is_file()
        chosen = self.again if continues else self.command
        return [word.format(whole=whole, out=out) for word in chosen.split()]


TRAINED = (
    "uptrain {whole}/converted {out} --data {whole}/data.jsonl --tokens 192 --length 8 --batch-size 4 "
    "--set held_out_rows=2 --set save_steps=1"
)
SCENES = {
    "convert mean": Scene("convert {whole}/source {out} --gkv 2 --merge mean"),
    "convert": Scene("convert {whole}/source {out} --gkv 2"),
    "convert overwrite": Scene("convert {whole}/source {out} --gkv 2 --overwrite", replaces="older"),
    "convert layerwise": Scene(
        f"convert {{whole}}/source {{out}} --gkv 2 {CALIBRATED} --refine output,layerwise"
    ),
    "export": Scene("export {whole}/converted {out}"),
    "export gguf": Scene("export {whole}/converted {out} --runtime gguf"),
    "uptrain": Scene(TRAINED, again="uptrain {whole}/converted {out} --resume"),
}


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder but for its reports, which must be complete JSON."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name in REPORTS:
            json.loads(path.read_text())
            found[path.name] = b""
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def names(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder."""
    paths: Iterator[Path] = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def cached(root: Path) -> str:
    """Return code that gives a command a cache of its own below a folder."""
    return f"os.environ['GQKVA_CACHE'] = {str(root / 'cache')!r}\n"


@dataclass(frozen=True)
class Undisturbed:
    """What a scene's command gives when nothing happens."""

    contents: dict[str, bytes]
    names: list[str]
    cache: list[str]
    ended: Ended


def undisturbed(scene: Scene, whole: Path, root: Path, children: Children) -> Undisturbed:
    """Run a scene's command, which must succeed."""
    root.mkdir()
    ended = children.run(scene.words(whole, root / "out"), root, patch=cached(root))
    assert ended.code == 0, ended.errors
    return Undisturbed(contents(root / "out"), names(root), cache_names(root), ended)


def cache_names(root: Path) -> list[str]:
    """Return the files of a command's own cache, but for those of packages below."""
    cache = root / "cache"
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
