"""PyTorch pickles (`pytorch_model.bin`), read without running anything they contain."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqkva_convert.checkpoint.damage import refuse_stand_in
from gqkva_convert.checkpoint.header import StoredTensor
from gqkva_convert.errors import CheckpointError
from gqkva_convert.units import human_bytes

if TYPE_CHECKING:
    from torch import Tensor


def load_pickled(path: Path) -> dict[str, Tensor]:
    """Load the tensors of one file, memory-mapped where the format allows.

    Raises:
        CheckpointError: The file is damaged, or holds anything but named tensors.
    """
    import torch

    _require_uncompressed(path)
    try:
        data = _load(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        refuse_stand_in(path)  # torch takes these words for a pickle of something else
        raise CheckpointError(
            f"{path} holds more than tensors and is not loaded, because unpickling could run code; "
            "save it again as safetensors where you trust it"
        ) from error
    except Exception as error:  # torch raises whatever a damaged byte leads it to
        refuse_stand_in(path)
        raise CheckpointError(f"{path} is truncated or not a PyTorch file, download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not named tensors")
    for name, value in data.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is a {type(value).__name__}, not a named tensor; "
                "this is not a model's weights as transformers saves them"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(
                f"{path}: {name!r} is sparse or quantised or without data, which safetensors cannot hold"
            )
        if value.nbytes > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name!r} repeats values that it does not store up to {human_bytes(value.nbytes)}; "
                "save a contiguous copy of it"
            )
    return data


def _require_uncompressed(path: Path) -> None:
    """Refuse entries that PyTorch does not write: a few bytes of them may unfold to any number.

    Raises:
        CheckpointError: An entry is compressed, or the archive cannot be listed.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is truncated or not a PyTorch file, download it again") from error
    if packed:
        raise CheckpointError(
            f"{path} holds compressed entries ({packed[0].filename}), which PyTorch does not write; save the "
            "weights again with torch.save or as safetensors"
        )


def _load(path: Path) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damage, which is reported as an error here
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # Files written before PyTorch 1.6 are not zip archives and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True)


def list_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """List names, dtypes and shapes of a file's tensors."""
    import torch

    names = {
        torch.bool: "BOOL",
        torch.uint8: "U8",
        torch.int8: "I8",
        torch.int16: "I16",
        torch.int32: "I32",
        torch.int64: "I64",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float32: "F32",
        torch.float64: "F64",
        torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2",
        torch.complex64: "C64",
    }
    tensors = []
    for name, value in load_pickled(path).items():
        if value.dtype not in names:
            raise CheckpointError(
                f"{path}: {name!r} has the dtype {value.dtype}, which safetensors cannot hold"
            )
        tensors.append(StoredTensor(name, names[value.dtype], tuple(value.shape), path, 0))
    return tuple(tensors)
