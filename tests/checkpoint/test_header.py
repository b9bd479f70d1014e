"""safetensors headers, held against the official reader and writer."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from gqkva_convert.checkpoint.dtypes import BITS, FLOAT_BY_NAME, FLOATS, tensor_bytes
from gqkva_convert.checkpoint.header import build_header, read_header
from gqkva_convert.checkpoint.reader import Stamp, TensorReader
from gqkva_convert.checkpoint.writer import ShardWriter
from gqkva_convert.errors import CheckpointError

properties = settings(max_examples=40, deadline=None)

NUMPY = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "I64": np.int64,
    "U64": np.uint64,
    "F64": np.float64,
}
# Any text that UTF-8 can hold.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
names = texts.filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
files = st.dictionaries(names, st.tuples(st.sampled_from(sorted(NUMPY)), shapes), max_size=6)
metadata = st.dictionaries(texts, texts, max_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the many small files of this module."""
    return tmp_path_factory.mktemp("headers")


def numbered(dtype: str, shape: tuple[int, ...], start: int) -> np.ndarray[Any, Any]:
    """An array whose bytes all differ from its neighbours'; booleans are 0 or 1."""
    count = tensor_bytes(dtype, shape)
    data = (np.arange(start, start + count) % (2 if dtype == "BOOL" else 120)).astype(np.uint8)
    return data.view(NUMPY[dtype]).reshape(shape)


def write_raw(path: Path, header: Any, data: bytes) -> Path:
    """A safetensors file whose header says whatever it is told to."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def one(**changes: Any) -> dict[str, Any]:
    """A truthful header of one tensor of 24 bytes, and then some lies."""
    return {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


@properties
@given(wanted=files, notes=metadata)
def test_what_the_official_writer_wrote_is_read_back(
    folder: Path, wanted: dict[str, tuple[str, tuple[int, ...]]], notes: dict[str, str]
) -> None:
    """Nearly every checkpoint on the Hub comes from this writer."""
    path = folder / "official.safetensors"
    arrays = {name: numbered(*kind, start) for start, (name, kind) in enumerate(wanted.items())}
    # safetensors 0.8 writes a broken header for an empty metadata map without tensors.
    save_file(arrays, path, metadata=notes or None)
    header = read_header(path)
    assert header.metadata == notes
    assert {tensor.name: (tensor.dtype, tensor.shape) for tensor in header.tensors} == wanted
    assert [tensor.offset for tensor in header.tensors] == sorted(tensor.offset for tensor in header.tensors)
    with TensorReader({path: Stamp.of(path)}, pickled=False) as reader:
        for tensor in header.tensors:
            assert reader.read(tensor).tobytes() == arrays[tensor.name].tobytes()


@properties
@given(wanted=files, notes=metadata)
def test_what_we_write_the_official_reader_reads(
    folder: Path, wanted: dict[str, tuple[str, tuple[int, ...]]], notes: dict[str, str]
) -> None:
    """transformers, vLLM and llama.cpp all read with it."""
    path = folder / "ours.safetensors"
    arrays = {name: numbered(*kind, start) for start, (name, kind) in enumerate(wanted.items())}
    with ShardWriter(path, [(name, *kind) for name, kind in wanted.items()], notes) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, array.reshape(-1).view(np.uint8))
        writer.finish()
    with safe_open(path, "np") as file:
        assert (file.metadata() or {}) == notes
        assert set(file.keys()) == set(wanted)
        for name, array in arrays.items():
            found = file.get_tensor(name)
            assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


@properties
@given(wanted=files, notes=metadata)
def test_what_we_write_we_read(
    folder: Path, wanted: dict[str, tuple[str, tuple[int, ...]]], notes: dict[str, str]
) -> None:
    """Tensors come back in the order given, at the offsets that `build_header` promised."""
    path = folder / "both.safetensors"
    opening, offsets = build_header([(name, *kind) for name, kind in wanted.items()], notes)
    path.write_bytes(opening + bytes(sum(tensor_bytes(*kind) for kind in wanted.values())))
    header = read_header(path)
    assert header.metadata == notes
    assert {tensor.name: (tensor.dtype, tensor.shape, tensor.offset) for tensor in header.tensors} == {
        name: (*kind, offsets[name]) for name, kind in wanted.items()
    }
    assert len(opening) % 8 == 0


def test_every_dtype_we_know_is_one_the_official_reader_knows(folder: Path) -> None:
    """A dtype under a name of our own would make files that nothing loads."""
    for dtype in BITS:
        opening, _ = build_header([("a", dtype, (2, 4, 3))], {})
        path = folder / f"{dtype}.safetensors"
        path.write_bytes(opening + bytes(24 * BITS[dtype] // 8))
        (tensor,) = read_header(path).tensors
        assert tensor.nbytes == 24 * BITS[dtype] // 8
        with safe_open(path, "np") as file:
            assert file.get_slice("a").get_dtype() == dtype
            assert file.get_slice("a").get_shape() == [2, 4, 3]


def test_the_float_names_go_both_ways() -> None:
    """A dtype is asked for in configuration words and stored in safetensors words."""
    assert {FLOAT_BY_NAME[name] for name in FLOATS.values()} == set(FLOATS) <= set(BITS)


def test_a_scalar_and_an_empty_tensor_have_their_sizes() -> None:
    """A product over no axes is one element, not none."""
    assert (tensor_bytes("F64", ()), tensor_bytes("F64", (3, 0, 5)), tensor_bytes("F4", (3,))) == (8, 0, 2)


LIES = {
    "overlap": (
        {**one(), "b": {"dtype": "U8", "shape": [9], "data_offsets": [20, 29]}},
        29,
        "'b' starts at byte 20 and overlaps the tensor before it (expected 24)",
    ),
    "the same bytes twice": (
        {**one(), "b": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}},
        24,
        "starts at byte 0 and overlaps the tensor before it (expected 24)",
    ),
    "hole": (
        {**one(), "b": {"dtype": "U8", "shape": [5], "data_offsets": [27, 32]}},
        32,
        "'b' starts at byte 27 and leaves a hole before it (expected 24)",
    ),
    "hole at the start": (one(data_offsets=[8, 32]), 32, "'a' starts at byte 8 and leaves a hole"),
    "empty tensor inside another": (
        {**one(), "b": {"dtype": "U8", "shape": [0], "data_offsets": [7, 7]}},
        24,
        "'b' starts at byte 7 and overlaps",
    ),
    "too small a range": (
        one(data_offsets=[0, 20]),
        20,
        "'a' of dtype F32 and shape [2, 3] needs 24 bytes, the header gives it 20",
    ),
    "too large a range": (one(data_offsets=[0, 28]), 28, "needs 24 bytes, the header gives it 28"),
    "range backwards": (one(data_offsets=[24, 0]), 24, "the header gives it -24"),
    "unknown dtype": (one(dtype="F31"), 24, "'a' has the unknown dtype 'F31'"),
    "dtype in small letters": (one(dtype="f32"), 24, "'a' has the unknown dtype 'f32'"),
    "dtype is a number": (one(dtype=32), 24, "'a' has the unknown dtype 32"),
    "dtype is null": (one(dtype=None), 24, "'a' has the unknown dtype None"),
    "data cut short": (one(), 23, "the header describes 24 bytes of data, the file has 23"),
    "data missing": (one(), 0, "the header describes 24 bytes of data, the file has 0"),
    "data behind the last tensor": (one(), 25, "the header describes 24 bytes of data, the file has 25"),
    "negative axis": (one(shape=[-2, -3]), 24, "'a' has a size that is not a whole number"),
    "boolean axis": (one(shape=[True, 6]), 24, "'a' has a size that is not a whole number"),
    "float axis": (one(shape=[2.0, 3]), 24, "'a' has a size that is not a whole number"),
    "text axis": (one(shape=["2", 3]), 24, "'a' has a size that is not a whole number"),
    "shape is a text": (one(shape="23"), 24, "entry of 'a' is malformed"),
    "nested axis": (one(shape=[[2, 3]]), 24, "'a' has a size that is not a whole number"),
    "negative start": (one(data_offsets=[-24, 0]), 0, "'a' has a size that is not a whole number"),
    "boolean start": (one(data_offsets=[False, 24]), 24, "'a' has a size that is not a whole number"),
    "float end": (one(data_offsets=[0, 24.0]), 24, "'a' has a size that is not a whole number"),
    "not a number": (one(shape=[float("nan")]), 24, "'a' has a size that is not a whole number"),
    "infinite": (one(shape=[float("inf")]), 24, "'a' has a size that is not a whole number"),
    "three offsets": (one(data_offsets=[0, 12, 24]), 24, "header entry of 'a' is malformed"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [6]}}, 24, "header entry of 'a' is malformed"),
    "no dtype": ({"a": {"shape": [6], "data_offsets": [0, 24]}}, 24, "header entry of 'a' is malformed"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 24]}}, 24, "header entry of 'a' is malformed"),
    "shape is a number": (one(shape=6), 24, "header entry of 'a' is malformed"),
    "entry is a number": ({"a": 6}, 0, "header entry of 'a' is malformed"),
    "entry is null": ({"a": None}, 0, "header entry of 'a' is malformed"),
    "entry is a list": ({"a": []}, 0, "header entry of 'a' is malformed"),
    "repeated name": (
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[3],"data_offsets":[2,5]}}',
        5,
        "names 'a' twice",
    ),
    "repeated field": (
        b'{"a":{"dtype":"U8","dtype":"I8","shape":[2],"data_offsets":[0,2]}}',
        2,
        "names 'dtype' twice",
    ),
    "repeated metadata": (b'{"__metadata__":{},"__metadata__":{}}', 0, "names '__metadata__' twice"),
    "metadata is a list": ({"__metadata__": ["pt"], **one()}, 24, "header metadata is not a map of texts"),
    "metadata is false": ({"__metadata__": False, **one()}, 24, "header metadata is not a map of texts"),
    "metadata holds a number": (
        {"__metadata__": {"v": 1}, **one()},
        24,
        "header metadata is not a map of texts",
    ),
    "header is a list": ([one()], 24, "header is not a JSON object"),
    "header is null": (b"null", 0, "header is not a JSON object"),
    "header is empty": (b"", 24, "is not JSON"),
    "header is cut": (b'{"a":{"dtype":"F32","sha', 24, "is not JSON"),
    "header is not text": (b"\x80\x04\x95\xff\xfe", 24, "is not JSON"),
    "header has a tail": (json.dumps(one()).encode() + b" x", 24, "is not JSON"),
    "header is nested without end": (b'{"a":' * 90_001, 0, "is not JSON"),
    "number too long to read": (b'{"a":' + b"9" * 5_001 + b"}", 0, "is not JSON"),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_lying_header_is_refused(tmp_path: Path, lie: str) -> None:
    """Believed, it would let one tensor's bytes pass for another's; the message names file and fault."""
    header, data_bytes, message = LIES[lie]
    path = write_raw(tmp_path / "model.safetensors", header, bytes(data_bytes))
    with pytest.raises(CheckpointError) as refusal:
        read_header(path)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)
    with pytest.raises(Exception, match=r"header|file|slice"), safe_open(path, "np"):
        pass


STRANGER_LIES = {
    "dtype is a list": one(dtype=["F32"]),
    "dtype is a map": one(dtype={"F32": None}),
    "product of axes too long to print": (
        '{"a":{"dtype":"F32","shape":[' + "9" * 4001 + "," + "7" * 4002 + '],"data_offsets":[0,24]}}'
    ).encode(),
}


@pytest.mark.parametrize("lie", sorted(STRANGER_LIES))
def test_a_header_that_lies_strangely_is_refused_too(tmp_path: Path, lie: str) -> None:
    """Nobody writes such a file by accident, so it must not be the one that shows a traceback."""
    path = write_raw(tmp_path / "model.safetensors", STRANGER_LIES[lie], bytes(24))
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        read_header(path)


OFFICIALLY_REFUSED = {
    "shape is an empty map": (one(shape={}, data_offsets=[0, 4]), 4),
    "shape is an empty text": (one(shape="", data_offsets=[0, 4]), 4),
    "half a surrogate pair in a name": (b'{"\\ud801":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}', 3),
    "a byte order mark": (b"\xef\xbb\xbf" + json.dumps(one()).encode(), 24),
    "UTF-16": (json.dumps(one()).encode("utf-16"), 24),
    "half a byte at the end": (one(dtype="F4", shape=[3], data_offsets=[0, 2]), 2),
}


@pytest.mark.parametrize("lie", sorted(OFFICIALLY_REFUSED))
def test_what_the_official_reader_refuses_is_refused(tmp_path: Path, lie: str) -> None:
    """A source that nothing else loads is damaged, and its conversion could not be checked against it."""
    header, data_bytes = OFFICIALLY_REFUSED[lie]
    path = write_raw(tmp_path / "model.safetensors", header, bytes(data_bytes))
    with pytest.raises(Exception, match="header"), safe_open(path, "np"):
        pass
    with pytest.raises(CheckpointError):
        read_header(path)


@pytest.mark.parametrize("size", [1, 7])
def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path, size: int) -> None:
    """An interrupted download often leaves next to nothing."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match=f"model.safetensors: {size} bytes are too few"):
        read_header(path)


@pytest.mark.parametrize("length", [17, 100_000_001, 2**40, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    """Eight bytes of an HTML page or a pickle announce petabytes; none of them may be allocated."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a":   "b"   }')
    with pytest.raises(CheckpointError, match=rf"header of {length} bytes announced in a file of 23"):
        read_header(path)


def test_a_header_over_the_official_limit_is_refused(tmp_path: Path) -> None:
    """The official reader stops at 100 MB; a sparse file of that size costs no disk."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000_001))
    os.truncate(path, 200_000_000)
    with pytest.raises(CheckpointError, match="header of 100000001 bytes announced"):
        read_header(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The system's own reason is the best advice there is."""
    with pytest.raises(CheckpointError, match=r"gone.safetensors: cannot be read: No such file"):
        read_header(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_header(tmp_path)


def test_empty_tensors_may_stand_anywhere_between_others(tmp_path: Path) -> None:
    """They share their place with the tensor that follows, which is no overlap."""
    entries = {
        "last": {"dtype": "F32", "shape": [0, 3], "data_offsets": [10, 10]},
        "second": {"dtype": "U8", "shape": [4], "data_offsets": [6, 10]},
        "between": {"dtype": "F64", "shape": [0], "data_offsets": [6, 6]},
        "first": {"dtype": "F16", "shape": [3], "data_offsets": [0, 6]},
        "before": {"dtype": "I8", "shape": [5, 0], "data_offsets": [0, 0]},
    }
    path = write_raw(tmp_path / "model.safetensors", entries, bytes(10))
    assert [tensor.name for tensor in read_header(path).tensors] == [
        "before",
        "first",
        "between",
        "second",
        "last",
    ]


@pytest.fixture(scope="module")
def valid(folder: Path) -> bytes:
    """A small valid file, as the official writer makes it."""
    arrays = {
        "h.0.weight": numbered("F32", (2, 3), 1),
        "h.0.bias": numbered("F16", (5,), 2),
        "n": numbered("I64", (), 3),
    }
    save_file(arrays, folder / "valid.safetensors", metadata={"format": "pt"})
    return (folder / "valid.safetensors").read_bytes()


def parses_or_is_refused(path: Path) -> None:
    """Read a header; let anything but `CheckpointError` through, and check what was accepted."""
    try:
        header = read_header(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    position = None
    for tensor in header.tensors:
        assert position is None or tensor.offset == position
        position = tensor.offset + tensor.nbytes
    assert position is None or position == path.stat().st_size


@settings(max_examples=250, deadline=None)
@given(changes=st.dictionaries(st.integers(0, 400), st.integers(0, 255), min_size=1, max_size=4))
def test_flipped_bytes_are_survived(folder: Path, valid: bytes, changes: dict[int, int]) -> None:
    """Disks and downloads flip bytes; the reader then sees an error of one line, never a traceback."""
    data = bytearray(valid)
    for place, byte in changes.items():
        data[place % len(data)] = byte
    path = folder / "flipped.safetensors"
    path.write_bytes(data)
    parses_or_is_refused(path)


@settings(max_examples=150, deadline=None)
@given(
    digits=st.dictionaries(
        st.integers(0, 99), st.sampled_from('0123456789-.e[]{},:"'), min_size=1, max_size=3
    )
)
def test_damaged_json_is_survived(folder: Path, valid: bytes, digits: dict[int, str]) -> None:
    """JSON that still parses is the harder half: sizes, offsets and brackets that no longer agree."""
    data = bytearray(valid)
    marks = [place for place in range(8, len(data)) if chr(data[place]) in "0123456789[]{},:"]
    for place, mark in digits.items():
        data[marks[place % len(marks)]] = ord(mark)
    path = folder / "damaged.safetensors"
    path.write_bytes(data)
    parses_or_is_refused(path)


def test_a_file_cut_anywhere_is_refused(folder: Path, valid: bytes) -> None:
    """A download may stop at any byte."""
    path = folder / "cut.safetensors"
    for size in range(len(valid)):
        path.write_bytes(valid[:size])
        with pytest.raises(CheckpointError, match=r"cut.safetensors"):
            read_header(path)
