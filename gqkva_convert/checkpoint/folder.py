"""A checkpoint folder: its configuration, its weight files, and the place of each tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.adapters import refuse_adapter
from gqkva_convert.checkpoint.header import StoredTensor, read_header
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.modules import transformer_folder
from gqkva_convert.checkpoint.reader import TensorReader
from gqkva_convert.errors import CheckpointError

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; no weights are held.

    Attributes:
        folder: Its folder.
        config: ``config.json`` as data.
        files: Weight files in index order.
        tensors: Every tensor by name, in file order.
        pickled: Whether the weights are PyTorch pickles (``.bin``) rather than safetensors.
    """

    folder: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    tensors: dict[str, StoredTensor]
    pickled: bool

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def reader(self) -> TensorReader:
        """Return a reader of the tensors' bytes; use it as a context manager."""
        return TensorReader(self.files, pickled=self.pickled)


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: The folder or the file is missing, the file does not name a ``model_type``, or an
            adapter is to be merged first.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a checkpoint folder or a Hub model id")
    path = folder / "config.json"
    refuse_adapter(folder)
    if not path.is_file():
        inner = transformer_folder(folder)
        if inner is not None:
            raise CheckpointError(
                f"{folder} has no config.json: its transformer is in {inner}; give {folder / inner}, and put "
                "the result in its place in a copy of the whole folder"
            )
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json")
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{path} names no model_type; it is not a transformers configuration")
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise CheckpointError(f"{path}: architectures is a list of class names, found {named!r}")
    return config


def weight_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, str] | None, bool]:
    """Find a folder's weights as transformers would.

    Returns:
        The files in index order, the index's map from tensor to file name (None for a single file), and
        whether they are pickles.

    Raises:
        CheckpointError: There are none, or the index names a file that is missing or outside the folder.
    """
    for name in (SAFETENSORS, PICKLED):
        pickled = name == PICKLED
        if (folder / name).is_file():
            return (folder / name,), None, pickled
        index_path = folder / f"{name}.index.json"
        if index_path.is_file():
            weight_map = read_index(index_path)
            files = []
            for file_name in dict.fromkeys(weight_map.values()):
                if Path(file_name).name != file_name or file_name in ("", ".", ".."):
                    raise CheckpointError(f"{index_path}: shard {file_name!r} lies outside the folder")
                if not (folder / file_name).is_file():
                    raise CheckpointError(
                        f"{index_path} names the shard {file_name}, which is missing; download it again"
                    )
                files.append(folder / file_name)
            return tuple(files), weight_map, pickled
    raise CheckpointError(
        f"{folder} holds no weights: none of {SAFETENSORS}, {PICKLED} or their index files is there"
    )


def read_index(path: Path) -> dict[str, str]:
    """Read the ``weight_map`` of a shard index: tensor name to file name."""
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(value, str) for value in weight_map.values())
    ):
        raise CheckpointError(f"{path} has no weight_map from tensors to files")
    return weight_map


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint from its headers alone; weights are not read.

    Raises:
        CheckpointError: It is incomplete or malformed; the message says which file and why.
    """
    config = read_config(folder)
    files, weight_map, pickled = weight_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for tensor in _read_tensors(path, pickled):
            if tensor.name in tensors:
                raise CheckpointError(
                    f"{tensor.name!r} is stored twice: in {tensors[tensor.name].file.name} and {path.name}"
                )
            tensors[tensor.name] = tensor
    if weight_map is not None:
        _check_index(folder, weight_map, tensors)
    return Checkpoint(folder, config, files, tensors, pickled)


def _read_tensors(path: Path, pickled: bool) -> tuple[StoredTensor, ...]:
    if pickled:
        from gqkva_convert.checkpoint.pickled import list_tensors

        return list_tensors(path)
    return read_header(path).tensors


def _check_index(folder: Path, weight_map: dict[str, str], tensors: dict[str, StoredTensor]) -> None:
    for name, file_name in weight_map.items():
        found = tensors.get(name)
        if found is None:
            raise CheckpointError(f"{folder}: the index names {name!r}, which is not in {file_name}")
        if found.file.name != file_name:
            raise CheckpointError(
                f"{folder}: the index puts {name!r} in {file_name}, it lies in {found.file.name}"
            )
    extra = next((name for name in tensors if name not in weight_map), None)
    if extra is not None:
        raise CheckpointError(f"{folder}: {tensors[extra].file.name} holds {extra!r}, which the index omits")
