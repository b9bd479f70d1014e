"""PyTorch pickles: read right, and never run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from gqkva_convert.checkpoint.pickled import list_tensors, load_pickled
from gqkva_convert.checkpoint.reader import Stamp, TensorReader
from gqkva_convert.errors import CheckpointError

both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(path: Path, data: Any, zipped: bool) -> Path:
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    return path


class Malicious:
    """A pickle of it asks the reader to make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@both_formats
@pytest.mark.parametrize(
    "wrap", [lambda evil: evil, lambda evil: {"w": torch.ones(3), "x": evil}], ids=["alone", "beside"]
)
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool, wrap: Any) -> None:
    """Anyone can upload a .bin; opening one must not run what it says."""
    path = save(tmp_path / "pytorch_model.bin", wrap(Malicious(tmp_path / "owned")), zipped)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin holds more than tensors and is not loaded"):
        list_tensors(path)
    assert not (tmp_path / "owned").exists()


def test_a_plain_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    """A file need not come from torch.save at all."""
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "owned"), protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
        load_pickled(path)
    assert not (tmp_path / "owned").exists()


@both_formats
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"wte": torch.ones(2, 3), "epoch": 7}, "'epoch' is a int, not a named tensor"),
        ({"wte": torch.ones(2, 3), "note": "best"}, "'note' is a str, not a named tensor"),
        ({"wte": torch.ones(2, 3), "lr": None}, "'lr' is a NoneType, not a named tensor"),
        ({"model": {"wte": torch.ones(2, 3)}}, "'model' is a dict, not a named tensor"),
        ({"state": [torch.ones(2, 3)]}, "'state' is a list, not a named tensor"),
        ([torch.ones(2, 3)], "holds a list, not named tensors"),
        (torch.ones(2, 3), "holds a Tensor, not named tensors"),
        ({5: torch.ones(2, 3)}, "5 is a Tensor"),
    ],
    ids=["number", "text", "none", "nested", "list inside", "list", "tensor", "unnamed"],
)
def test_anything_but_named_tensors_is_refused(tmp_path: Path, zipped: bool, data: Any, message: str) -> None:
    """A training checkpoint may lie under this name; a part converted in silence would lose the rest."""
    path = save(tmp_path / "pytorch_model.bin", data, zipped)
    with pytest.raises(CheckpointError, match=message) as refusal:
        list_tensors(path)
    assert str(path) in str(refusal.value)


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    """Zeros shrink a thousandfold: a download of 3 MB would take 3 GB of memory."""
    written = save(tmp_path / "written.bin", {"wte": torch.zeros(256, 1024)}, zipped=True)
    packed = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert packed.stat().st_size < written.stat().st_size / 100
    with pytest.raises(CheckpointError, match=r"holds compressed entries \(written/data.pkl\)"):
        load_pickled(packed)


@both_formats
def test_values_that_are_not_stored_are_refused(tmp_path: Path, zipped: bool) -> None:
    """One number repeated a billion times takes 4 bytes in the file."""
    path = save(tmp_path / "pytorch_model.bin", {"wte": torch.ones(1).expand(1 << 20, 1 << 10)}, zipped)
    with pytest.raises(CheckpointError, match=r"'wte' repeats values that it does not store up to 4.29 GB"):
        list_tensors(path)


def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    """A safetensors file holds dense tensors only."""
    path = save(tmp_path / "pytorch_model.bin", {"mask": torch.eye(3).to_sparse()}, True)
    with pytest.raises(CheckpointError, match="'mask' is sparse or quantised"):
        list_tensors(path)


def test_a_dtype_safetensors_lacks_is_refused(tmp_path: Path) -> None:
    """The name of the tensor tells whether it can be left out."""
    path = save(tmp_path / "pytorch_model.bin", {"roots": torch.ones(3, dtype=torch.complex128)}, True)
    with pytest.raises(
        CheckpointError, match=r"'roots' has the dtype torch.complex128, which safetensors cannot hold"
    ):
        list_tensors(path)


def test_a_tensor_without_data_is_refused(tmp_path: Path) -> None:
    """Models saved before their weights were loaded hold shapes only; found late, hours may be lost."""
    path = save(tmp_path / "pytorch_model.bin", {"wte": torch.ones(2, 3, device="meta")}, True)
    with pytest.raises(CheckpointError, match="wte"):
        list_tensors(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    ],
    ids=["empty", "one byte", "page", "pointer"],
)
def test_what_is_no_pytorch_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """A failed download often leaves a page or a pointer under the file's name."""
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
        list_tensors(path)


def test_an_archive_without_tensors_is_refused(tmp_path: Path) -> None:
    """Any zip file begins like a PyTorch file."""
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "none here")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is truncated or not a PyTorch file"):
        list_tensors(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """Another process may have removed it since the folder was listed."""
    with pytest.raises(CheckpointError, match=r"gone.bin"):
        list_tensors(tmp_path / "gone.bin")


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    """A download may stop at any byte; it must not end in a traceback."""
    path = save(tmp_path / "pytorch_model.bin", {"wte": torch.arange(6.0).reshape(2, 3)}, True)
    whole = path.read_bytes()
    for size in [*range(1, 40), *range(40, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
            list_tensors(path)


def test_a_cut_legacy_file_is_refused(tmp_path: Path) -> None:
    """Files before PyTorch 1.6 have no directory at their end, so the reader goes on until the cut."""
    path = save(tmp_path / "pytorch_model.bin", {"wte": torch.arange(6.0).reshape(2, 3)}, False)
    whole = path.read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
            list_tensors(path)


def read_all(path: Path) -> dict[str, bytes]:
    """Every tensor's bytes, as a conversion reads them."""
    with TensorReader({path: Stamp.of(path)}, pickled=True) as reader:
        return {tensor.name: reader.read(tensor).tobytes() for tensor in list_tensors(path)}


@both_formats
def test_every_dtype_is_named_and_read_bit_for_bit(tmp_path: Path, zipped: bool) -> None:
    """bfloat16 has no numpy type, so its bits must never pass through one."""
    bits = torch.tensor([0, 1, -1, 0x3F80, 0x7F80, 0x7FC1, -0x8000], dtype=torch.int16)
    tensors = {
        "BF16": bits.clone().view(torch.bfloat16),
        "F16": bits[:6].clone().view(torch.float16),
        "F32": torch.tensor([0.1, -0.0, torch.inf, 1e-45]),
        "F64": torch.tensor([[0.1, 5e-324], [torch.nan, -1e300], [3.0, 4.0]], dtype=torch.float64),
        "BOOL": torch.tensor([True, False, True]),
        "U8": torch.tensor([255, 0, 7, 9, 1], dtype=torch.uint8),
        "I8": torch.tensor([[-128], [127]], dtype=torch.int8),
        "I16": bits.reshape(7, 1),
        "I32": torch.tensor(-(2**31), dtype=torch.int32),
        "I64": torch.tensor([2**62, -5]),
        "C64": torch.tensor([1 + 2j, 3 - 4j]),
    }
    if zipped:  # PyTorch itself does not read 8-bit floats back from the old format.
        tensors["F8_E4M3"] = torch.tensor([1.0, -448.0], dtype=torch.float8_e4m3fn)
        tensors["F8_E5M2"] = torch.tensor([0.5, -3.0, 7.0], dtype=torch.float8_e5m2)
    path = save(tmp_path / "pytorch_model.bin", tensors, zipped)
    listed = list_tensors(path)
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in listed] == [
        (name, name, tuple(tensor.shape)) for name, tensor in tensors.items()
    ]
    assert read_all(path) == {
        name: bytes(tensor.reshape(-1).view(torch.uint8).tolist()) for name, tensor in tensors.items()
    }


@both_formats
def test_views_are_read_in_the_order_of_their_axes(tmp_path: Path, zipped: bool) -> None:
    """PyTorch stores strides; a transposed or sliced weight does not lie in the file as it reads."""
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    tensors = {
        "transposed": base.transpose(0, 2),
        "sliced": base[1:, 1:3, ::2],
        "expanded": base[0, 0, 1:4].expand(2, 3),
        "empty": base[:0],
        "scalar": base[2, 3, 4],
        "parameter": torch.nn.Parameter(base[1].t()),
    }
    found = read_all(save(tmp_path / "pytorch_model.bin", tensors, zipped))
    assert found == {name: tensor.detach().contiguous().numpy().tobytes() for name, tensor in tensors.items()}


@both_formats
def test_tensors_that_share_storage_are_read_each_in_full(tmp_path: Path, zipped: bool) -> None:
    """Tied embeddings lie in the file once under two names; both names must give the weights."""
    shared = torch.arange(12, dtype=torch.bfloat16)
    tensors = {"wte": shared.reshape(4, 3), "lm_head": shared.reshape(4, 3), "tail": shared[7:]}
    path = save(tmp_path / "pytorch_model.bin", tensors, zipped)
    raw = bytes(shared.view(torch.uint8).tolist())
    assert read_all(path) == {"wte": raw, "lm_head": raw, "tail": raw[14:]}


@both_formats
def test_any_range_of_a_tensor_can_be_read(tmp_path: Path, zipped: bool) -> None:
    """Merging reads heads one at a time, from transposed weights too."""
    weight = torch.arange(35, dtype=torch.float16).reshape(5, 7).t()
    path = save(tmp_path / "pytorch_model.bin", {"w": weight}, zipped)
    raw = weight.contiguous().numpy().tobytes()
    (tensor,) = list_tensors(path)
    with TensorReader({path: Stamp.of(path)}, pickled=True) as reader:
        assert reader.descriptor(tensor) is None
        for start, count in ((0, 70), (10, 20), (69, 1), (3, 0), (70, 0)):
            assert reader.read(tensor, start, count).tobytes() == raw[start : start + count]
        assert reader.read(tensor, 60).tobytes() == raw[60:]
