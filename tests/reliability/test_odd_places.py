"""Targets in odd places: links, read-only folders, other disks, inside what is read, odd names."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from scenes import SCENES, cached, contents, names, stamps
from small_disks import small_disk
from warm_children import Children

from .conftest import FOUND, mostly_slow

ODD_NAMES = ("with space", "new\nline", "ü 漢字", "-dash", "a" * 200, ".hidden", "$(touch x)")
WRITERS = ("convert mean", "export", "export gguf", "uptrain")


def refused(children: Children, name: str, whole: Path, out: Path, below: Path) -> str:
    """Run a command that must be refused in one line with exit code 7, and return the line."""
    before = stamps(whole)
    ended = children.run(SCENES[name].words(whole, out), below, patch=cached(below.parent / "other"))
    FOUND["odd places"] += 1
    assert ended.code == 7, (ended.code, ended.errors)
    assert len(ended.lines) == 1, ended.errors
    assert stamps(whole) == before
    return ended.lines[0]


def a_link(out: Path) -> None:
    (out.parent / "real").mkdir()
    out.symlink_to("real")


def a_broken_link(out: Path) -> None:
    out.symlink_to("nowhere")


def a_link_for_a_lock(out: Path) -> None:
    out.with_name(f".{out.name}.gqkva-lock").symlink_to("victim")


def a_link_for_scratch(out: Path) -> None:
    (out.parent / "victim").mkdir()
    (out.parent / "victim" / "precious").write_text("x")
    out.with_name(f".{out.name}.gqkva-partial").symlink_to("victim")


def a_file(out: Path) -> None:
    out.write_text("precious")


PLACES: dict[str, Callable[[Path], None]] = {
    make.__name__: make for make in (a_link, a_broken_link, a_link_for_a_lock, a_link_for_scratch, a_file)
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", mostly_slow(WRITERS, ["convert mean"]))
def test_a_place_that_is_taken_stays_as_it_is(
    name: str, place: str, whole: Path, children: Children, tmp_path: Path
) -> None:
    """Whoever can write beside the target could otherwise have the user's own files replaced."""
    root = tmp_path / "root"
    root.mkdir()
    PLACES[place](root / "out")
    before, listed = names(root), stamps(root)
    refused(children, name, whole, root / "out", root)
    found = {path: stamp for path, stamp in stamps(root).items() if "/out-run/" not in path}
    assert found == listed
    assert [other for other in names(root) if other != "out-run"] == before


@pytest.mark.parametrize("name", mostly_slow(WRITERS, ["convert mean"]))
def test_a_read_only_disk_is_one_line(name: str, whole: Path, children: Children, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64) as small:
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        line = refused(children, name, whole, small / "out", small)
        assert "Read-only file system" in line
        assert names(small) == []


@pytest.mark.parametrize("name", mostly_slow(WRITERS, ["convert mean"]))
def test_another_file_system_is_no_different(
    name: str, whole: Path, children: Children, tmp_path: Path
) -> None:
    """Renames do not cross file systems: all that is renamed must lie beside the target."""
    patch = cached(tmp_path / "other")
    with small_disk(tmp_path / "small", 65536) as small:
        ended = children.run(SCENES[name].words(whole, small / "out"), small, patch=patch)
        assert ended.code == 0, ended.errors
        (tmp_path / "here").mkdir()
        ended = children.run(SCENES[name].words(whole, tmp_path / "here" / "out"), tmp_path, patch=patch)
        assert contents(small / "out") == contents(tmp_path / "here" / "out")
        assert names(small) == names(tmp_path / "here")


@pytest.mark.parametrize("name", mostly_slow(WRITERS, ["convert mean"]))
def test_a_target_inside_what_is_read_leaves_it_as_it_is(
    name: str, whole: Path, children: Children, tmp_path: Path
) -> None:
    """What lies inside the source is no part of it; training, whose result is a copy of all, refuses."""
    copy = shutil.copytree(whole, tmp_path / "copy")
    read = copy / ("converted" if "converted" in SCENES[name].command else "source")
    before = stamps(copy)
    if name == "uptrain":
        refused(children, name, copy, read / "out", tmp_path)
        assert stamps(copy) == before
        return
    results = []
    for out in (read / "out", tmp_path / "out"):
        ended = children.run(SCENES[name].words(copy, out), tmp_path, patch=cached(tmp_path))
        assert ended.code == 0, ended.errors
        results.append(contents(out))
        FOUND["odd places"] += 1
    assert results[0] == results[1]
    assert {path: stamp for path, stamp in stamps(copy).items() if path in before} == before
    assert names(read) == sorted([*names(whole / read.name), "out"])


@pytest.mark.parametrize("odd", ODD_NAMES)
def test_odd_names_are_names(odd: str, whole: Path, children: Children, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    ended = children.run(
        ["convert", whole / "source", root / odd, "--gkv", "2", "--merge", "mean"],
        root,
        patch=cached(tmp_path),
    )
    FOUND["odd places"] += 1
    assert ended.code == 0, ended.errors
    assert names(root) == [odd]
    ended = children.run(["inspect", root / odd], root)
    assert ended.code == 0, ended.errors


@pytest.mark.parametrize("name", mostly_slow(WRITERS, ["convert mean"]))
def test_a_name_that_is_too_long_is_one_line(
    name: str, whole: Path, children: Children, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert "File name too long" in refused(children, name, whole, root / ("a" * 250), root)
    assert names(root) == []


@pytest.mark.slow
def test_times_that_jump_do_not_count(whole: Path, children: Children, tmp_path: Path) -> None:
    """Files from the future, as of a machine whose clock was wrong, are files."""
    copy = shutil.copytree(whole, tmp_path / "copy")
    for number, path in enumerate(sorted(copy.rglob("*"))):
        os.utime(path, (4e9 * (number % 2), 4e9 * (number % 2)))
    for name in WRITERS:
        results = []
        for read in (whole, copy):
            root = tmp_path / f"{name} {read.name}"
            root.mkdir()
            ended = children.run(SCENES[name].words(read, root / "out"), root, patch=cached(root))
            assert ended.code == 0, ended.errors
            results.append(contents(root / "out"))
            FOUND["odd places"] += 1
        assert results[0] == results[1]
