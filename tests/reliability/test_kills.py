"""SIGKILL at random moments, and just before random changes of files: nothing lost, nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hub_server import HubState, Repository, hub_environment, running_hub
from scenes import SCENES, Scene, Undisturbed, cache_names, cached, contents, names, stamps, undisturbed
from warm_children import Children, warm_children

from .conftest import CODES, FOUND, mostly_slow

# Clocks that jump: seconds by which each look at the time is off.
JUMPING = (
    "import random, time\n"
    "def _jumping(now=time.time, draw=random.Random({seed})):\n"
    "    return now() + draw.choice([-1e6, -3600.0, 0.0, 3600.0, 1e6])\n"
    "time.time = _jumping\n"
)


@pytest.fixture(scope="module")
def calm(whole: Path, children: Children, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    """What each scene gives when nothing happens, made when it is asked for."""
    return {}


def calm_result(
    name: str, calm: dict[str, Undisturbed], whole: Path, children: Children, root: Path
) -> Undisturbed:
    if name not in calm:
        calm[name] = undisturbed(SCENES[name], whole, root / "calm", children)
        assert calm[name].ended.changes > 5
    return calm[name]


@pytest.mark.parametrize("name", mostly_slow(SCENES, ["convert overwrite"]))
def test_a_kill_at_any_moment_costs_nothing(
    name: str, trials: int, whole: Path, children: Children, calm: dict[str, Undisturbed], tmp_path: Path
) -> None:
    """The target is what stood there or the whole result; the next run leaves nothing else."""
    scene, expected = SCENES[name], calm_result(name, calm, whole, children, tmp_path)
    before, failures = stamps(whole), []
    for seed in range(trials):
        draw, root = Random(f"kill {name} {seed}"), tmp_path / str(seed)
        root.mkdir()
        if scene.replaces:
            shutil.copytree(whole / scene.replaces, root / "out")
        failure = _trial(name, scene, expected, draw, whole, root, children)
        if failure is not None:
            failures.append(f"seed {seed}: {failure}")
        shutil.rmtree(root)
    if stamps(whole) != before:
        failures.append("what was read has changed")
    assert not failures, "\n".join([f"{len(failures)} of {trials}", *failures])


def _trial(
    name: str, scene: Scene, expected: Undisturbed, draw: Random, whole: Path, root: Path, children: Children
) -> str | None:
    out = root / "out"
    allowed = [expected.contents, *([contents(whole / scene.replaces)] if scene.replaces else [])]
    # One in four has a clock that jumps.
    patch = cached(root) + (JUMPING.format(seed=draw.randrange(99)) if draw.random() < 0.25 else "")
    story = []
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        moment = draw.uniform(0, expected.ended.seconds) if draw.random() < 0.5 else None
        change = None if moment is not None else draw.randrange(1, expected.ended.changes + 1)
        words = scene.words(whole, out)
        ended = children.run(words, root, at_second=moment, at_change=change, patch=patch)
        story.append(f"{words[-1]} {moment or change} -> {ended.code} {names(root)}")
        if ended.code == -9:
            FOUND[f"kills, {name}"] += 1
        elif ended.code not in CODES:
            return f"{story}: {ended.errors[-300:]}"
        if out.exists() and contents(out) not in allowed:
            return f"{story}: {names(out)} is not complete"
        if scene.replaces and not out.exists() and not (root / ".out.gqkva-previous").exists():
            return f"{story}: what stood there is lost"
    was_complete = out.exists() and contents(out) == expected.contents
    ended = children.run(scene.words(whole, out), root, patch=patch)
    story.append(f"again -> {ended.code} {names(root)}")
    is_there = was_complete and ended.code in (7, 12) and len(ended.lines) == 1
    if ended.code and not is_there:
        return f"{story}: {ended.errors[-300:]}"
    if contents(out) != expected.contents:
        return f"{story}: another result"
    if names(root) != expected.names and not (is_there and names(root) in (["out"], ["cache", "out"])):
        return f"{story}: left {names(root)}"
    # Fitted heads of a run that was killed after publishing go with age.
    more = set(cache_names(root)) - set(expected.cache)
    if {path for path in more if not (is_there and path.startswith("fits/"))}:
        return f"{story}: left {sorted(more)} in the cache"
    FOUND[f"taken up after kills, {name}"] += 1
    return None


@pytest.fixture(scope="module")
def hub_children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubState, Children]]:
    root = tmp_path_factory.mktemp("hub")
    with running_hub() as hub:
        environment = {**hub_environment(hub, root / "home"), "GQKVA_CACHE": str(root / "cache")}
        with warm_children(root / "answers", environment) as children:
            yield hub, children


@pytest.fixture(scope="module")
def pushed(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified folder, as it is pushed."""
    from gqkva_convert import verify

    folder = shutil.copytree(whole / "converted", tmp_path_factory.mktemp("pushed") / "converted")
    assert verify(folder)["passed"]
    return folder


def files_of(repository: Repository) -> dict[str, bytes]:
    return repository.files("main") or {}


@pytest.mark.slow
def test_a_push_killed_at_any_moment_is_a_whole_commit_or_none(
    trials: int, pushed: Path, hub_children: tuple[HubState, Children], tmp_path: Path
) -> None:
    """Whoever downloads in between gets nothing or everything; the same command completes it."""
    hub, children = hub_children
    hub.part_bytes = None
    words = ["push", str(pushed), "owner/calm"]
    calm = children.run(words, tmp_path)
    assert calm.code == 0, calm.errors
    expected, before, failures = files_of(hub.repositories["owner/calm"]), stamps(pushed), []
    for seed in range(trials):
        draw, name = Random(f"kill push {seed}"), f"owner/trial{seed}"
        hub.stored.clear()
        words[2] = name
        ended = children.run(words, tmp_path, at_second=draw.uniform(0, calm.seconds))
        FOUND["kills, push"] += ended.code == -9
        there = files_of(hub.repositories[name]) if name in hub.repositories else {}
        if not (len(there) <= 1 or set(there) == set(expected)):
            failures.append(f"seed {seed}: {sorted(there)} is a part")
        again = children.run(words, tmp_path)
        found = files_of(hub.repositories[name]) if name in hub.repositories else {}
        same = set(found) == set(expected) and all(
            found[path] == expected[path] for path in found if path.endswith((".safetensors", "config.json"))
        )
        if again.code or not same:
            failures.append(f"seed {seed}: {again.code} {again.errors[-300:]} {sorted(found)}")
    assert not failures, "\n".join(failures)
    after = stamps(pushed)
    card = str(pushed / "README.md")  # a push writes it, with the name of the repository
    assert {**after, card: None} == {**before, card: None}
