"""Disks from too small to just enough: one line, nothing left, and the same command works with more room."""

from __future__ import annotations

import subprocess
from pathlib import Path
from random import Random

import pytest
from scenes import SCENES, cached, contents, names, undisturbed
from small_disks import small_disk
from warm_children import Children

from .conftest import FOUND, mostly_slow

# As of a disk that others fill at the same time: what is free when it is asked for is not so later.
BLIND = "import shutil; shutil.disk_usage = lambda _, found=shutil.disk_usage('/'): found\n"
SCENES_ON_DISKS = ("convert", "convert mean", "export", "export gguf", "uptrain")


@pytest.mark.parametrize("name", mostly_slow(SCENES_ON_DISKS, ["convert mean"]))
def test_a_full_disk_is_one_line(
    name: str, trials: int, whole: Path, children: Children, tmp_path: Path
) -> None:
    """Nobody should have to guess from a traceback, or clean up by hand, what a full disk has cut off."""
    scene = SCENES[name]
    calm = undisturbed(scene, whole, tmp_path / "calm", children)
    used = sum(path.stat().st_size for path in (tmp_path / "calm").rglob("*") if path.is_file()) // 1024
    most = 6 if name == "uptrain" else 1.2  # checkpoints are kept beside each other while it runs
    failures = []
    for seed in range(trials):
        draw = Random(f"disk {name} {seed}")
        kilobytes, patch = draw.randrange(8, int(most * used) + 64), cached(tmp_path / "cache")
        patch += BLIND if draw.random() < 0.6 else ""
        with small_disk(tmp_path / str(seed), kilobytes) as small:
            out = small / "out"
            ended = children.run(scene.words(whole, out), small, patch=patch)
            FOUND[f"full disks, {name}"] += ended.code != 0
            left = [other for other in names(small) if other != "out-run"]
            told = f"seed {seed}, {kilobytes} kB: {ended.code} {ended.errors[-400:]} {names(small)}"
            if ended.code == 0 and contents(out) == calm.contents:
                continue
            if ended.code != 7 or len(ended.lines) != 1 or left:
                failures.append(told)
                continue
            subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
            again = children.run(scene.words(whole, out), small, patch=cached(tmp_path / "cache"))
            if again.code or contents(out) != calm.contents:
                failures.append(f"{told}; with room {again.code} {again.errors[-300:]}")
    assert not failures, "\n".join([f"{len(failures)} of {trials}", *failures])
