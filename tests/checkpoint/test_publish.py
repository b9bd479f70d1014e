"""`published_folder`: a complete checkpoint under the target's name, or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gqkva_convert.checkpoint.publish import clear_lock, locked, published_folder, scratch_folder, writing
from gqkva_convert.errors import OutputError, Terminated

# Holds the folder argv[1], having written one shard, until a line arrives; then publishes it.
HOLDER = """
import sys
from pathlib import Path
from gqkva_convert.checkpoint.publish import published_folder
with published_folder(Path(sys.argv[1]), overwrite=False) as folder:
    (folder / "config.json").write_text("theirs")
    (folder / "model-00001-of-00002.safetensors").write_text("complete")
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(target: Path) -> subprocess.Popen[str]:
    """Another process in the middle of writing ``target``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def old(target: Path) -> Path:
    """A checkpoint that stands under the target's name."""
    target.mkdir()
    (target / "config.json").write_text("old")
    (target / "leftover.txt").write_text("old")
    return target


def test_success_gives_the_folder_its_name(target: Path) -> None:
    """Until then nobody can load half a checkpoint by mistake."""
    with published_folder(target, overwrite=False) as scratch:
        (scratch / "config.json").write_text("new")
        (scratch / "additional_chat_templates").mkdir()
        (scratch / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
        assert not target.exists()
        assert scratch == scratch_folder(target)
        assert scratch.parent == target.parent
    assert contents(target) == {"config.json": "new", "additional_chat_templates/tool.jinja": "{{ x }}"}
    assert names(target.parent) == ["out"]


def test_parents_are_made(tmp_path: Path) -> None:
    """`convert MODEL runs/7/out` should not need a mkdir."""
    with published_folder(tmp_path / "runs" / "7" / "out", overwrite=False) as scratch:
        (scratch / "config.json").write_text("new")
    assert contents(tmp_path) == {"runs/7/out/config.json": "new"}


def test_a_relative_target_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that changes the working directory must not move the output."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with published_folder(Path("out"), overwrite=False) as scratch:
        monkeypatch.chdir(tmp_path / "elsewhere")
        (scratch / "config.json").write_text("new")
    assert contents(tmp_path) == {"out/config.json": "new"}


@pytest.mark.parametrize("written", [(), ("config.json",), ("config.json", "model.safetensors")])
def test_an_error_leaves_nothing(target: Path, written: tuple[str, ...]) -> None:
    """Neither scratch nor lock; what failed once may fail again from the same shards."""
    with pytest.raises(RuntimeError, match="boom"), published_folder(target, overwrite=False) as scratch:  # noqa: PT012
        for name in written:
            (scratch / name).write_text("half")
        raise RuntimeError("boom")
    assert names(target.parent) == []


def test_a_failed_write_is_one_line(target: Path) -> None:
    """The system's reason is passed on under the name the reader gave."""
    with pytest.raises(OutputError) as refusal, published_folder(target, overwrite=False) as scratch:
        (scratch / "missing" / "config.json").write_text("x")
    assert str(refusal.value).startswith(f"cannot write {target}: No such file or directory")
    assert isinstance(refusal.value.__cause__, OSError)
    assert names(target.parent) == []


def test_our_own_errors_pass_through(target: Path) -> None:
    """They already say more than a wrapper could."""
    with pytest.raises(OutputError, match=r"^no space left$"), published_folder(target, overwrite=False):
        raise OutputError("no space left")
    assert names(target.parent) == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, Terminated, SystemExit])
def test_an_interrupt_before_the_first_shard_leaves_nothing(
    target: Path, interrupt: type[BaseException]
) -> None:
    """There is nothing to go on from."""
    with pytest.raises(interrupt), published_folder(target, overwrite=False) as scratch:  # noqa: PT012
        (scratch / "config.json").write_text("half")
        (scratch / "model.safetensors.unfinished").write_text("half")
        raise interrupt
    assert names(target.parent) == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, Terminated])
def test_an_interrupt_after_a_shard_keeps_it_for_the_next_run(
    target: Path, interrupt: type[BaseException]
) -> None:
    """Hours of merging are worth keeping, but not under the target's name."""
    shard = "model-00001-of-00003.safetensors"
    with pytest.raises(interrupt), published_folder(target, overwrite=False) as scratch:  # noqa: PT012
        (scratch / shard).write_text("complete")
        raise interrupt
    assert names(target.parent) == [scratch_folder(target).name]
    with published_folder(target, overwrite=False) as scratch:
        assert contents(scratch) == {shard: "complete"}
    assert contents(target) == {shard: "complete"}
    assert names(target.parent) == ["out"]


def test_an_existing_checkpoint_is_not_replaced_unasked(old: Path) -> None:
    """Refused before any work; the remedy is in the message."""
    with (
        pytest.raises(OutputError, match=r"out already exists; choose another folder or give --overwrite"),
        published_folder(old, overwrite=False),
    ):
        pytest.fail("the block must not run")
    assert contents(old.parent) == {"out/config.json": "old", "out/leftover.txt": "old"}
    assert names(old.parent) == ["out"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("gone")])
def test_nothing_that_exists_is_replaced_unasked(target: Path, make: Any) -> None:
    """An empty folder, a file or a dead link is somebody's too."""
    make(target)
    with pytest.raises(OutputError, match="already exists"), published_folder(target, overwrite=False):
        pytest.fail("the block must not run")
    assert names(target.parent) == ["out"]


def test_an_old_checkpoint_stands_until_the_new_one_is_complete(old: Path) -> None:
    """A server may be reloading it; and the new one's tensors may come from it."""
    with published_folder(old, overwrite=True) as scratch:
        (scratch / "config.json").write_text("new")
        assert contents(old) == {"config.json": "old", "leftover.txt": "old"}
    assert contents(old) == {"config.json": "new"}
    assert names(old.parent) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_an_old_checkpoint_survives_an_error(old: Path, error: type[BaseException]) -> None:
    """A failed replacement must not cost what it should have replaced."""
    with pytest.raises((error, OutputError)), published_folder(old, overwrite=True) as scratch:  # noqa: PT012
        (scratch / "config.json").write_text("half")
        raise error
    assert contents(old) == {"config.json": "old", "leftover.txt": "old"}
    assert names(old.parent) == ["out"]


def test_an_old_checkpoint_survives_a_failed_rename(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems refuse renames too; the old one must stand until the new one does."""
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == scratch_folder(old):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError), published_folder(old, overwrite=True) as scratch:
        (scratch / "config.json").write_text("new")
    assert names(old.parent) == ["out"]
    assert contents(old) == {"config.json": "old", "leftover.txt": "old"}


def test_an_empty_folder_may_be_replaced(target: Path) -> None:
    """Job schedulers make the output folder beforehand."""
    target.mkdir()
    with published_folder(target, overwrite=True) as scratch:
        (scratch / "config.json").write_text("new")
    assert contents(target) == {"config.json": "new"}
    assert names(target.parent) == ["out"]


def folder_of_notes(target: Path) -> None:
    target.mkdir()
    (target / "thesis.tex").write_text("precious")


def a_file(target: Path) -> None:
    target.write_text("precious")


def a_link_to_a_checkpoint(target: Path) -> None:
    (target.parent / "real").mkdir()
    (target.parent / "real" / "config.json").write_text("precious")
    target.symlink_to("real")


def a_link_to_an_empty_folder(target: Path) -> None:
    (target.parent / "real").mkdir()
    target.symlink_to("real")


@pytest.mark.parametrize("make", [folder_of_notes, a_file, a_link_to_a_checkpoint, a_link_to_an_empty_folder])
def test_what_is_no_checkpoint_is_never_replaced(target: Path, make: Any) -> None:
    """`--overwrite ~` must not delete a home."""
    make(target)
    before = names(target.parent), contents(target.parent)
    with (
        pytest.raises(
            OutputError, match=r"out is not a checkpoint folder, so --overwrite does not replace it"
        ),
        published_folder(target, overwrite=True),
    ):
        pytest.fail("the block must not run")
    assert (names(target.parent), contents(target.parent)) == before


def test_a_parent_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    """A slip of the keyboard is no bug of ours."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"cannot write .*file/out: "),
        published_folder(tmp_path / "file" / "out", overwrite=False),
    ):
        pytest.fail("the block must not run")


def test_the_root_is_refused_in_one_line() -> None:
    """`convert MODEL /` should be told, not traced."""
    with pytest.raises(OutputError), published_folder(Path("/"), overwrite=True):
        pytest.fail("the block must not run")


def test_a_lock_that_is_a_link_is_not_followed(target: Path) -> None:
    """Whoever can write beside the target could otherwise have any file of the user's made."""
    lock = target.with_name(f".{target.name}.gqkva-lock")
    lock.symlink_to(target.parent / "elsewhere")
    with (
        pytest.raises(OutputError, match=r"gqkva-lock is a link, which no run of ours leaves behind"),
        published_folder(target, overwrite=True),
    ):
        pytest.fail("the block must not run")
    assert names(target.parent) == [lock.name]


def test_a_second_run_is_refused_while_the_first_writes(target: Path) -> None:
    """Two runs in one scratch folder would publish a mixture; the first must not notice the second."""
    holder = hold(target)
    with (
        pytest.raises(
            OutputError, match=r"another gqkva run is writing .*out; wait for it or choose another"
        ),
        published_folder(target, overwrite=True),
    ):
        pytest.fail("the block must not run")
    holder.communicate("go on\n")
    assert holder.returncode == 0
    assert contents(target) == {"config.json": "theirs", "model-00001-of-00002.safetensors": "complete"}
    assert names(target.parent) == ["out"]


def test_a_second_run_in_the_same_process_is_refused(target: Path) -> None:
    """Notebooks start things twice."""
    with published_folder(target, overwrite=False) as scratch:
        with pytest.raises(OutputError, match="another gqkva run"), published_folder(target, overwrite=False):
            pytest.fail("the block must not run")
        (scratch / "config.json").write_text("new")
    assert contents(target) == {"config.json": "new"}


def test_neighbours_do_not_lock_each_other(tmp_path: Path) -> None:
    """Several variants of one model are made side by side."""
    with (
        published_folder(tmp_path / "a", overwrite=False) as one,
        published_folder(tmp_path / "b", overwrite=False) as other,
    ):
        (one / "config.json").write_text("a")
        (other / "config.json").write_text("b")
    assert contents(tmp_path) == {"a/config.json": "a", "b/config.json": "b"}


def test_a_killed_run_is_taken_over(target: Path) -> None:
    """Its lock dies with it, and its complete shards need not be written again."""
    holder = hold(target)
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert not target.exists()
    with published_folder(target, overwrite=False) as scratch:
        assert "model-00001-of-00002.safetensors" in names(scratch)
        (scratch / "config.json").write_text("ours")
    assert contents(target) == {"config.json": "ours", "model-00001-of-00002.safetensors": "complete"}
    assert names(target.parent) == ["out"]


@pytest.fixture
def killed_between_renames(old: Path) -> Path:
    """What a run with overwrite leaves when it dies between moving the old checkpoint and the new."""
    old.rename(old.with_name(".out.gqkva-previous"))
    scratch_folder(old).mkdir()
    (scratch_folder(old) / "model.safetensors").write_text("complete")
    return old


def test_after_a_kill_between_renames_the_old_checkpoint_comes_back(killed_between_renames: Path) -> None:
    """It exists under a hidden name only, and the next run must not delete it there."""
    target = killed_between_renames
    with pytest.raises(OutputError, match="already exists"), published_folder(target, overwrite=False):
        pytest.fail("the block must not run")
    assert contents(target) == {"config.json": "old", "leftover.txt": "old"}


def test_after_a_kill_between_renames_an_error_does_not_lose_it(killed_between_renames: Path) -> None:
    """Two accidents in a row are still no reason to lose a checkpoint."""
    target = killed_between_renames
    with pytest.raises(RuntimeError), published_folder(target, overwrite=True):
        raise RuntimeError
    assert contents(target) == {"config.json": "old", "leftover.txt": "old"}
    assert names(target.parent) == ["out"]


def test_after_a_kill_between_renames_the_run_can_be_finished(killed_between_renames: Path) -> None:
    """The same command again completes it, from the shards that were ready."""
    target = killed_between_renames
    with published_folder(target, overwrite=True) as scratch:
        assert contents(scratch) == {"model.safetensors": "complete"}
        (scratch / "config.json").write_text("new")
    assert contents(target) == {"config.json": "new", "model.safetensors": "complete"}
    assert names(target.parent) == ["out"]


def test_after_a_kill_before_the_last_cleaning_the_old_one_goes(old: Path) -> None:
    """Killed after both renames, a run leaves the replaced one hidden; the next run frees its space."""
    previous = old.with_name(".out.gqkva-previous")
    previous.mkdir()
    (previous / "config.json").write_text("older")
    with published_folder(old, overwrite=True) as scratch:
        (scratch / "config.json").write_text("new")
    assert contents(old.parent) == {"out/config.json": "new"}
    assert names(old.parent) == ["out"]


def test_weights_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    """Safetensors writes files for their owner alone; a server often runs as somebody else."""
    import torch
    from safetensors.torch import save_file

    mask = os.umask(0o022)
    try:
        with published_folder(tmp_path / "out", overwrite=False) as folder:
            save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    finally:
        os.umask(mask)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_after_a_kill_before_the_last_cleaning_a_refusal_cleans_too(old: Path) -> None:
    """The replaced checkpoint may be of 140 GB, and the run that would free them is not asked for again."""
    previous = old.with_name(".out.gqkva-previous")
    previous.mkdir()
    (previous / "config.json").write_text("older")
    with pytest.raises(OutputError, match="already exists"), published_folder(old, overwrite=False):
        pytest.fail("the block must not run")
    assert contents(old) == {"config.json": "old", "leftover.txt": "old"}
    assert names(old.parent) == ["out"]


def test_a_replaced_checkpoint_stays_beside_a_folder_that_is_none(killed_between_renames: Path) -> None:
    """Whoever makes the missing folder by hand must not lose the one that was moved aside."""
    target = killed_between_renames
    target.mkdir()
    with pytest.raises(OutputError, match="already exists"), published_folder(target, overwrite=False):
        pytest.fail("the block must not run")
    assert (target.parent / ".out.gqkva-previous" / "config.json").read_text() == "old"


def test_a_stale_lock_is_cleared_and_a_held_one_is_not(target: Path) -> None:
    """A run that is refused before it takes the lock would otherwise leave that of a killed one."""
    lock = target.with_name(f".{target.name}.gqkva-lock")
    clear_lock(target)
    lock.touch()
    clear_lock(target)
    assert names(target.parent) == []
    with locked(target):
        clear_lock(target)
        assert lock.exists()
    clear_lock(target.parent / ("a" * 250))


@pytest.mark.parametrize(
    "words", ["basic_ios::clear: iostream error", "unexpected pos 5376 vs 5268", "Error while serializing: x"]
)
def test_what_torch_says_of_a_full_disk_is_one_line(target: Path, words: str) -> None:
    """Its archives end with other words than the system's, depending on where the disk was full."""
    with pytest.raises(OutputError, match="is the disk full"), writing(target):
        raise RuntimeError(words)
