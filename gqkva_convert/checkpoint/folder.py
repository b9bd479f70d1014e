"""A checkpoint folder: its configuration, its weight files, and the place of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.adapters import refuse_adapter
from gqkva_convert.checkpoint.damage import refuse_damaged_files, refuse_stand_in
from gqkva_convert.checkpoint.header import StoredTensor, read_header
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.checkpoint.modules import transformer_folder
from gqkva_convert.checkpoint.reader import Stamp, TensorReader, same_bytes
from gqkva_convert.checkpoint.sidecars import folders_beside, module_weights
from gqkva_convert.errors import CheckpointError

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
# The configuration key that names another file.
WEIGHTS_KEY = "transformers_weights"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; no weights are held.

    Attributes:
        folder: Its folder.
        config: ``config.json`` as data.
        files: Weight files in index order.
        tensors: Every tensor by name, in file order.
        pickled: Whether the weights are PyTorch pickles (``.bin``) rather than safetensors.
        stamps: The files' stamps from before their headers were read.
        absent: Tensors that the index names and no file holds, with the file that it gives them: right for
            tied copies alone.
    """

    folder: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    tensors: dict[str, StoredTensor]
    pickled: bool
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Return the names of all tensors, those that the index alone names too."""
        return {*self.tensors, *self.absent}

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def reader(self) -> TensorReader:
        """Return a reader of the tensors' bytes; use it as a context manager."""
        return TensorReader(self.stamps, pickled=self.pickled)


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
        raise CheckpointError(
            f"{path} names no model_type; if it is a transformers configuration of 2019, add the model's, "
            'such as "model_type": "bert"'
        )
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise CheckpointError(f"{path}: architectures is a list of class names, found {named!r}")
    return config


def weight_files(
    folder: Path, config: Mapping[str, Any]
) -> tuple[tuple[Path, ...], dict[str, str] | None, bool]:
    """Find a folder's weights as transformers would.

    Args:
        folder: Checkpoint folder.
        config: Its configuration, which may name the file (`named_weights`).

    Returns:
        The files in index order, the index's map from tensor to file name (None for a single file), and
        whether they are pickles.

    Raises:
        CheckpointError: There are none, or the index names a file that is missing or outside the folder.
    """
    named = named_weights(config, folder)
    usual = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLED, f"{PICKLED}.index.json")
    name = next((name for name in ((named,) if named else usual) if (folder / name).is_file()), None)
    if name is None:
        for path in (folder / looked_for for looked_for in ((named,) if named else usual)):
            if path.is_symlink():
                raise CheckpointError(f"{path} is a link to {path.readlink()}, which is not there")
        raise CheckpointError(
            f"{folder} holds no weights: {named}, which config.json names, is not there"
            if named
            else f"{folder} holds no weights: none of {SAFETENSORS}, {PICKLED} or their index files is there"
        )
    if not name.endswith(".index.json"):
        return (folder / name,), None, name == PICKLED
    weight_map = read_index(folder / name)
    files = tuple(_shard(folder / name, file_name) for file_name in dict.fromkeys(weight_map.values()))
    return files, weight_map, name == f"{PICKLED}.index.json"


def named_weights(config: Mapping[str, Any], where: object) -> str | None:
    """Return the safetensors file, or index of such files, that a configuration names; None if it does not.

    Raises:
        CheckpointError: transformers would not read it, or it lies outside the folder.
    """
    name = config.get(WEIGHTS_KEY)
    if name is None:
        return None
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(
            f"{where}: config.json sets {WEIGHTS_KEY} to {name!r}; transformers reads a .safetensors file or "
            "a .safetensors.index.json there"
        )
    if not _is_name(name):
        raise CheckpointError(f"{where}: config.json sets {WEIGHTS_KEY} to {name!r}, outside the folder")
    return name


def _shard(index_path: Path, file_name: str) -> Path:
    path = index_path.with_name(file_name) if _is_name(file_name) else None
    if path is None:
        raise CheckpointError(f"{index_path}: shard {file_name!r} lies outside the folder")
    if not path.is_file():
        raise CheckpointError(
            f"{index_path} names the shard {file_name}, which is missing; download it again"
        )
    return path


def _is_name(text: str) -> bool:
    return Path(text).name == text and text not in ("", ".", "..")


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
    if not isinstance(index.get("metadata"), dict):
        raise CheckpointError(f'{path} has no map "metadata", without which transformers does not load it')
    return weight_map


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint from its headers alone; weights are not read.

    Raises:
        CheckpointError: It is incomplete or malformed; the message says which file and why.
    """
    config = read_config(folder)
    files, weight_map, pickled = weight_files(folder, config)
    refuse_damaged_files(folder)
    for beside in folders_beside(folder):
        refuse_damaged_files(beside)
    for path in module_weights(folder).values():
        refuse_stand_in(path)
    stamps = {path: Stamp.of(path) for path in files}
    found: dict[str, list[StoredTensor]] = {}
    for path in files:
        for tensor in _read_tensors(path, pickled):
            found.setdefault(tensor.name, []).append(tensor)
    with TensorReader(stamps, pickled=pickled) if _are_repeated(found) else nullcontext() as reader:
        tensors = {
            name: places[0] if len(places) == 1 else _loaded(places, weight_map or {}, reader)
            for name, places in found.items()
        }
    absent = _check_index(folder, weight_map or {}, tensors)
    return Checkpoint(folder, config, files, tensors, pickled, stamps, absent)


def _read_tensors(path: Path, pickled: bool) -> tuple[StoredTensor, ...]:
    if pickled:
        from gqkva_convert.checkpoint.pickled import list_tensors

        return list_tensors(path)
    return read_header(path).tensors


def _are_repeated(found: Mapping[str, list[StoredTensor]]) -> bool:
    return any(len(places) > 1 for places in found.values())


def _loaded(
    places: list[StoredTensor], weight_map: Mapping[str, str], reader: TensorReader | None
) -> StoredTensor:
    """Return the tensor that the index names, of several with one name.

    transformers reads every shard whole, in the order of their names, and keeps the last of a name. Others
    follow the index. Both must find the same values.

    Raises:
        CheckpointError: They would not.
    """
    assert reader is not None
    last = max(places, key=lambda tensor: tensor.file.name)
    named = next((place for place in places if place.file.name == weight_map.get(place.name)), last)
    if named is not last and not same_bytes(named, last, reader):
        raise CheckpointError(
            f"{named.name!r} is stored twice with different values: the index names {named.file.name}, "
            f"transformers loads it from {last.file.name}; remove one of them"
        )
    return named


def _check_index(
    folder: Path, weight_map: Mapping[str, str], tensors: Mapping[str, StoredTensor]
) -> dict[str, str]:
    """Return the names that no shard holds, with the shard that the index gives them.

    What shards hold beyond the index is loaded by transformers as if the index named it.

    Raises:
        CheckpointError: A tensor lies in another shard than the index says.
    """
    absent = {}
    for name, file_name in weight_map.items():
        found = tensors.get(name)
        if found is None:
            absent[name] = file_name
        elif found.file.name != file_name:
            raise CheckpointError(
                f"{folder}: the index puts {name!r} in {file_name}, it lies in {found.file.name}"
            )
    return absent
