"""Runs beside each other on one target: one of their results, whole; the others say what keeps them out."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest
from scenes import SCENES, cached, contents, names, undisturbed
from warm_children import Children

from .conftest import FOUND, mostly_slow

RACES = {
    "convert": ("convert", "convert mean"),
    "convert, three": ("convert", "convert mean", "convert"),
    "overwrite": ("convert overwrite", "convert overwrite"),
    "export gguf": ("export gguf", "export gguf"),
    "convert and export": ("convert", "export"),
    "uptrain": ("uptrain", "uptrain"),
}


@pytest.mark.parametrize("race", mostly_slow(RACES, ["convert"]))
def test_runs_on_one_target_do_not_mix(
    race: str, trials: int, whole: Path, children: Children, tmp_path: Path
) -> None:
    """Two jobs of a queue may be given one folder by mistake: a mixture would load and answer nonsense."""
    scenes = {name: SCENES[name] for name in RACES[race]}
    whole_results = [
        undisturbed(scene, whole, tmp_path / f"calm {name}", children).contents
        for name, scene in scenes.items()
    ]
    failures = []
    for seed in range(trials):
        root, draw = tmp_path / str(seed), Random(f"race {race} {seed}")
        root.mkdir()
        replaces = next(iter(scenes.values())).replaces
        if replaces:
            shutil.copytree(whole / replaces, root / "out")
        order = draw.sample(RACES[race], len(RACES[race]))
        # The second starts a little later, by another stretch each time.
        patch = cached(root) + f"import time; time.sleep((os.getpid() % 7) * {draw.uniform(0, 0.05)})\n"
        ended = children.race([scenes[name].words(whole, root / "out") for name in order], root, patch=patch)
        FOUND[f"races, {race}"] += 1
        codes = [each.code for each in ended]
        told = f"seed {seed}: {codes} {[each.errors[-300:] for each in ended]} {names(root)}"
        kept_out = all(
            each.code == 0 or (each.code == 7 and len(each.lines) == 1 and "Traceback" not in each.errors)
            for each in ended
        )
        left = set(names(root)) - {"out", "out-run", "cache"}
        if not kept_out or 0 not in codes or left or contents(root / "out") not in whole_results:
            failures.append(told)
        shutil.rmtree(root)
    assert not failures, "\n".join([f"{len(failures)} of {trials}", *failures])
