"""Interrupts, kills, full disks and second runs: no target folder that is not complete, nothing lost."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from small_disks import small_disk
from typer.testing import Result

from gqkva_convert.checkpoint.writer import ShardWriter

Run = Callable[..., Result]


def contents(folder: Path) -> dict[str, bytes]:
    """A checkpoint's files but for the report, which holds timings."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "gqkva_report.json"}


@pytest.fixture
def unbroken(llama: Path, gqkva: Run) -> dict[str, bytes]:
    """What an undisturbed conversion writes."""
    assert gqkva("convert", llama, llama.parent / "unbroken", "--gkv", "2").exit_code == 0
    return contents(llama.parent / "unbroken")


def interrupt_at(number: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at the given write of a shard, counted over copies, merges and file endings."""
    count = 0
    for name in ("write", "copy", "finish"):
        original = getattr(ShardWriter, name)

        def hooked(self: ShardWriter, *arguments: object, original: Callable[..., None] = original) -> None:
            nonlocal count
            count += 1
            if count == number:
                raise error
            original(self, *arguments)

        monkeypatch.setattr(ShardWriter, name, hooked)


def count_writes(llama: Path, gqkva: Run) -> int:
    with pytest.MonkeyPatch.context() as patch:
        calls = []
        for name in ("write", "copy", "finish"):
            original = getattr(ShardWriter, name)

            def hooked(
                self: ShardWriter, *arguments: object, original: Callable[..., None] = original
            ) -> None:
                calls.append(1)
                original(self, *arguments)

            patch.setattr(ShardWriter, name, hooked)
        assert gqkva("convert", llama, llama.parent / "counted", "--gkv", "2").exit_code == 0
    return len(calls)


def test_an_interrupt_at_any_write_leaves_no_target_and_resumes(
    llama: Path, unbroken: dict[str, bytes], gqkva: Run
) -> None:
    """Ctrl-C may come at any moment; the second run must give what one run would have."""
    writes = count_writes(llama, gqkva)
    assert writes > 10
    resumed = 0
    for number in range(1, writes + 1):
        out = llama.parent / f"out{number}"
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(number, KeyboardInterrupt(), patch)
            result = gqkva("convert", llama, out, "--gkv", "2")
        assert result.exit_code == 130
        assert not out.exists()
        scratch = out.with_name(f".{out.name}.gqkva-partial")
        assert scratch.exists() == ("shards are complete and kept" in result.stderr)
        resumed += scratch.exists()
        assert gqkva("convert", llama, out, "--gkv", "2").exit_code == 0
        assert contents(out) == unbroken
        assert not list(llama.parent.glob(".out*"))
    assert 0 < resumed < writes


@pytest.mark.parametrize("number", [1, 5, 12])
def test_an_error_in_the_middle_leaves_nothing(
    number: int, llama: Path, gqkva: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk should not be kept full by what cannot be finished."""
    before = {path.name for path in llama.parent.iterdir()}
    for name in ("pwrite", "copy_file_range"):
        original = getattr(os, name)
        count = 0

        def hooked(*arguments: object, original: Callable[..., int] = original) -> int:
            nonlocal count
            count += 1
            if count >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments)

        monkeypatch.setattr(os, name, hooked)
    result = gqkva("convert", llama, llama.parent / "out", "--gkv", "2")
    assert result.exit_code == 7
    assert "no space left" in result.stderr
    assert {path.name for path in llama.parent.iterdir()} == before


def test_a_real_full_disk_is_survived(llama: Path, tmp_path: Path) -> None:
    """The same with the kernel's own error, on a file system of 48 kB; needs the right to mount one."""
    with small_disk(tmp_path / "small", 48) as small:
        script = (
            "import shutil, sys; from gqkva_convert.cli import app\n"
            "usage = shutil.disk_usage('/'); shutil.disk_usage = lambda _: usage\n"
            f"app(['convert', {str(llama)!r}, {str(small / 'out')!r}, '--gkv', '2'])"
        )
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert result.returncode == 7, result.stderr
        assert "no space left" in result.stderr
        assert list(small.iterdir()) == []


KILL_AT_SHARD = textwrap.dedent(
    """
    import os, signal, sys
    from gqkva_convert.checkpoint.writer import ShardWriter
    from gqkva_convert.cli import app

    finish, shards = ShardWriter.finish, 0

    def finish_then_die(self):
        global shards
        finish(self)
        shards += 1
        if shards == int(sys.argv[1]):
            os.kill(os.getpid(), int(sys.argv[2]))

    ShardWriter.finish = finish_then_die
    app(sys.argv[3:])
    """
)


@pytest.mark.parametrize("at_shard", [1, 2])
def test_a_killed_conversion_goes_on_from_its_last_shard(
    at_shard: int, llama: Path, unbroken: dict[str, bytes], gqkva: Run
) -> None:
    """SIGKILL allows no clean-up; the next run finds the complete shards and writes only the others."""
    out = llama.parent / "out"
    arguments = ["convert", str(llama), str(out), "--gkv", "2"]
    killed = subprocess.run(
        [sys.executable, "-c", KILL_AT_SHARD, str(at_shard), str(int(signal.SIGKILL)), *arguments],
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    scratch = llama.parent / ".out.gqkva-partial"
    kept = {path.name: path.stat().st_mtime_ns for path in scratch.glob("*.safetensors")}
    assert len(kept) >= at_shard  # two are written at once
    assert gqkva(*arguments).exit_code == 0
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert contents(out) == unbroken
    assert not list(llama.parent.glob(".out*"))


def test_another_conversion_does_not_take_over_what_was_left(llama: Path, gqkva: Run) -> None:
    """Shards of --gkv 2 inside a --gkv 1 model would load and answer nonsense."""
    out = llama.parent / "out"
    subprocess.run(
        [sys.executable, "-c", KILL_AT_SHARD, "2", "9", "convert", str(llama), str(out), "--gkv", "2"],
        check=False,
    )
    assert gqkva("convert", llama, out, "--gkv", "1").exit_code == 0
    assert gqkva("convert", llama, llama.parent / "fresh", "--gkv", "1").exit_code == 0
    assert contents(out) == contents(llama.parent / "fresh")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_with_their_documented_code(number: signal.Signals, code: int, llama: Path) -> None:
    """Schedulers send SIGTERM, people press Ctrl-C; neither should see a traceback."""
    out = llama.parent / "out"
    command = [sys.executable, "-c", KILL_AT_SHARD, "1", str(int(number)), "convert", str(llama), str(out)]
    result = subprocess.run([*command, "--gkv", "2"], capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(r"[1-5] of 5 shards are complete and kept", result.stderr)
    assert not out.exists()


def test_overwrite_keeps_the_old_folder_until_the_new_one_is_complete(
    llama: Path, unbroken: dict[str, bytes], gqkva: Run
) -> None:
    """A failed --overwrite must not cost the model it was to replace."""
    out = llama.parent / "unbroken"
    for error in (KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(4, error, patch)
            assert gqkva("convert", llama, out, "--gkv", "1", "--overwrite").exit_code in (130, 7)
        assert contents(out) == unbroken
    assert gqkva("convert", llama, out, "--gkv", "1", "--overwrite").exit_code == 0
    assert contents(out) != unbroken
    assert sorted(path.name for path in llama.parent.iterdir()) == ["llama", "unbroken"]


def test_two_runs_on_one_target_do_not_mix(llama: Path, gqkva: Run) -> None:
    """The second run says that the first is at work, and changes nothing."""
    out = llama.parent / "out"
    script = KILL_AT_SHARD.replace(
        "os.kill(os.getpid(), int(sys.argv[2]))", "print('ready', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, "1", "0", "convert", str(llama), str(out), "--gkv", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        second = gqkva("convert", llama, out, "--gkv", "2")
        assert second.exit_code == 7
        assert "another gqkva run is writing" in second.stderr
        first.communicate("\n", timeout=60)
        assert first.returncode == 0
    assert out.exists()
    assert not list(llama.parent.glob(".out*"))
