"""`ShardWriter`: whatever the order and whatever the kernel can do, the same file; or none."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gqkva_convert.checkpoint import writer as writer_module
from gqkva_convert.checkpoint.header import read_header
from gqkva_convert.checkpoint.writer import ShardWriter
from gqkva_convert.errors import OutputError

ARRAYS = {
    "wte": np.arange(77, dtype=np.float32).reshape(11, 7),
    "bias": np.arange(5, dtype=np.float16),
    "empty": np.zeros((3, 0), dtype=np.int64),
    "step": np.array(9, dtype=np.int32),
}
KINDS = [("bias", "F16", (5,)), ("wte", "F32", (11, 7)), ("empty", "I64", (3, 0)), ("step", "I32", ())]


def raw(name: str) -> np.ndarray[Any, Any]:
    return ARRAYS[name].reshape(-1).view(np.uint8)


def assert_complete(path: Path) -> None:
    """The official reader finds every tensor, and nothing else lies in the folder."""
    found = load_file(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """A descriptor of a file with the same tensors elsewhere in it, and their offsets."""
    file = tmp_path / "source.safetensors"
    save_file(ARRAYS, file, metadata={"padding": "so that no offset is the output's"})
    descriptor = os.open(file, os.O_RDONLY)
    yield descriptor, {tensor.name: tensor.offset for tensor in read_header(file).tensors}
    os.close(descriptor)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_ranges_may_be_written_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Threads finish when they finish."""
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    pieces = []
    for name in ARRAYS:
        length = len(raw(name))
        cuts = sorted(data.draw(st.sets(st.integers(0, length), max_size=4)) | {0, length})
        pieces += [(name, start, end) for start, end in pairwise(cuts)]
    with ShardWriter(path, KINDS, {"format": "pt"}) as writer:
        for name, start, end in data.draw(st.permutations(pieces)):
            writer.write(name, start, raw(name)[start:end])
        writer.finish()
    assert_complete(path)
    assert read_header(path).metadata == {"format": "pt"}


def test_threads_may_write_at_once(path: Path) -> None:
    """A shared file position would mix their bytes up."""
    pieces = [(name, at) for name in ARRAYS for at in range(len(raw(name)))]
    with ShardWriter(path, KINDS, {}) as writer:
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(lambda piece: writer.write(*piece, raw(piece[0])[piece[1] : piece[1] + 1]), pieces))
        writer.finish()
    assert_complete(path)


def copy_all(path: Path, source: tuple[int, dict[str, int]]) -> None:
    descriptor, offsets = source
    with ShardWriter(path, KINDS, {}) as writer:
        for name in reversed(ARRAYS):
            writer.copy(name, 0, descriptor, offsets[name], len(raw(name)))
        writer.finish()


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="this system has no copy_file_range")
def test_untouched_tensors_are_copied_by_the_kernel(
    path: Path, source: tuple[int, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of a conversion is copying; through Python it would take twice the memory traffic."""
    asked: list[int] = []
    kernel = os.copy_file_range

    def counted(*arguments: int) -> int:
        asked.append(arguments[2])
        return kernel(*arguments)

    monkeypatch.setattr(os, "copy_file_range", counted)
    copy_all(path, source)
    assert_complete(path)
    assert sum(asked) >= sum(len(raw(name)) for name in ARRAYS)


@pytest.mark.parametrize("reason", ["EXDEV", "ENOSYS", "EINVAL", "EOPNOTSUPP", "EPERM", "EBADF"])
def test_where_the_kernel_cannot_copy_we_do(
    path: Path, source: tuple[int, dict[str, int]], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Another disk, an old kernel or a network file system must cost time only."""

    def cannot(*_: int) -> int:
        raise OSError(getattr(errno, reason), reason)

    monkeypatch.setattr(os, "copy_file_range", cannot, raising=False)
    copy_all(path, source)
    assert_complete(path)


def test_a_system_without_the_call_copies_too(
    path: Path, source: tuple[int, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS there is none."""
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    copy_all(path, source)
    assert_complete(path)


def test_a_kernel_that_gives_up_half_way_is_relieved(
    path: Path, source: tuple[int, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems copy the first part and refuse the next; no byte may be lost between."""
    calls = 0

    def sometimes(source: int, target: int, count: int, source_offset: int, target_offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 2 == 0:
            raise OSError(errno.EXDEV, "no more")
        return os.pwrite(target, os.pread(source, min(count, 3), source_offset), target_offset)

    monkeypatch.setattr(writer_module, "COPY_BYTES", 13)
    monkeypatch.setattr(os, "copy_file_range", sometimes, raising=False)
    copy_all(path, source)
    assert calls > len(ARRAYS)
    assert_complete(path)


def test_short_writes_are_continued(
    path: Path, source: tuple[int, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may write less than asked, as it does beyond 2 GiB."""
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda target, data, offset: whole(target, data[:7], offset))
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    copy_all(path, source)
    assert_complete(path)


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_source_that_shrinks_is_reported(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_kernel: bool
) -> None:
    """Copying on would leave zeros where weights were."""
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    short = tmp_path / "short.safetensors"
    short.write_bytes(bytes(100))
    descriptor = os.open(short, os.O_RDONLY)
    with (
        pytest.raises(OutputError, match=r"model.safetensors: the source file ended early"),
        ShardWriter(path, KINDS, {}) as writer,
    ):
        writer.copy("wte", 0, descriptor, 0, 308)
    os.close(descriptor)
    assert list(path.parent.iterdir()) == []


def test_leaving_without_finish_leaves_nothing(path: Path) -> None:
    """An early return must not leave a file that looks like a shard."""
    with ShardWriter(path, KINDS, {}) as writer:
        writer.write("bias", 0, raw("bias"))
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(path: Path, error: type[BaseException]) -> None:
    """Half a shard has a truthful header and would load as zeros."""
    with pytest.raises(error), ShardWriter(path, KINDS, {}):
        raise error
    assert list(path.parent.iterdir()) == []


def test_the_name_is_given_at_the_end(path: Path) -> None:
    """A run that is killed must find only complete shards under their names when it goes on."""
    with ShardWriter(path, KINDS, {}) as writer:
        for name in ARRAYS:
            writer.write(name, 0, raw(name))
        assert not path.exists()
        assert not list(path.parent.glob("*.safetensors"))
        writer.finish()
        assert path.exists()
    assert_complete(path)


def test_leftovers_of_a_killed_run_are_written_over(path: Path) -> None:
    """A longer half-written file of the same name must not lend its tail."""
    path.with_name("model.safetensors.unfinished").write_bytes(b"x" * 5000)
    with ShardWriter(path, KINDS, {}) as writer:
        for name in ARRAYS:
            writer.write(name, 0, raw(name))
        writer.finish()
    assert_complete(path)


def failing(code: int) -> Any:
    def fail(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("call", ["pwrite", "copy_file_range"])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "no space left while writing {path}; free some or choose another folder"),
        (errno.EDQUOT, "no space left while writing {path}; free some or choose another folder"),
        (errno.EIO, "cannot write {path}: Input/output error"),
        (errno.EROFS, "cannot write {path}: Read-only file system"),
    ],
)
def test_a_full_or_broken_disk_is_one_line(
    path: Path,
    source: tuple[int, dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    code: int,
    message: str,
) -> None:
    """Checkpoints fill disks; the message says which, and nothing stays on it."""
    descriptor, offsets = source
    if call == "pwrite":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    with pytest.raises(OutputError) as refusal, ShardWriter(path, KINDS, {}) as writer:  # noqa: PT012
        monkeypatch.setattr(os, call, failing(code), raising=False)
        writer.copy("wte", 0, descriptor, offsets["wte"], 308)
    assert str(refusal.value) == message.format(path=path)
    assert isinstance(refusal.value.__cause__, OSError)
    assert list(path.parent.iterdir()) == []


def test_a_disk_too_full_for_the_header_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very first write can be the one too many; the file and its descriptor must go."""
    open_before = len(list(Path("/dev/fd").iterdir()))
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
    with pytest.raises(OutputError, match="no space left"):
        ShardWriter(path, KINDS, {})
    assert list(path.parent.iterdir()) == []
    assert len(list(Path("/dev/fd").iterdir())) == open_before


def test_a_disk_that_fills_under_a_merged_tensor_is_one_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged tensors do not go through the kernel's copy."""
    with pytest.raises(OutputError, match="no space left"), ShardWriter(path, KINDS, {}) as writer:  # noqa: PT012
        monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
        writer.write("bias", 0, raw("bias"))
    assert list(path.parent.iterdir()) == []
