"""Models named by their Hub id: found, and fetched as far as needed."""

from __future__ import annotations

import errno
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gqkva_convert.checkpoint.adapters import ADAPTER_CONFIG, refuse_adapter_among
from gqkva_convert.checkpoint.folder import (
    PICKLED,
    SAFETENSORS,
    Checkpoint,
    named_weights,
    open_checkpoint,
    read_config,
    read_index,
)
from gqkva_convert.checkpoint.header import StoredTensor
from gqkva_convert.checkpoint.hub_errors import explain, is_of_the_hub
from gqkva_convert.checkpoint.modules import MODULE_WEIGHTS, read_modules
from gqkva_convert.errors import CheckpointError, GqkvaError, HubError, OutputError

Answer = TypeVar("Answer")

if TYPE_CHECKING:
    from collections.abc import Callable

# The small language model in the package, by its name on the command line.
BUILT_IN = "built-in"
_BUILT_IN_FOLDER = Path(__file__).parents[1] / "demo_model" / "checkpoint"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_REFUSALS = {
    "name": "{repo} is no folder here and no possible Hub id; check the name",
    "gated": "{repo} is gated; accept its licence on the Hub and log in with `hf auth login`",
    "revision": "{repo} has no such revision",
    "absent": "no folder and no Hub model is called {repo}; check the name, "
    "or log in with `hf auth login` if it is private",
    "unreachable": "{repo} is no folder here and the Hub cannot be reached; check the name and the network",
    "entry": "{repo} is no transformers checkpoint: a file it must have is missing",
    "damaged": "{repo} holds a damaged safetensors file",
    "other": "{repo} cannot be fetched from the Hub: {own}",
    "refused": "the Hub refused {repo} ({status}); try again later",
}
# Code, and weights in formats or folders that are not read; weights that are read are fetched by name.
_NOT_FETCHED = [
    "*.safetensors",
    "*.bin",
    "*.py",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.onnx*",
    "*.pth",
    "*.pt",
    "*.ot",
]


class NoHeadersError(HubError):
    """A Hub model whose weights are not safetensors."""


@dataclass(frozen=True)
class Located:
    """A model found on disk.

    Attributes:
        folder: Its folder on disk.
        name: Its name as the user gave it.
        revision: Commit of a Hub model.
        sha256: Checksums the Hub states for files, by name.
    """

    folder: Path
    name: str
    revision: str | None
    sha256: dict[str, str]


def is_hub_id(model: str) -> bool:
    """Return whether a name could be a Hub id (``owner/name``) and is no local path."""
    return not Path(model).exists() and model != BUILT_IN and _HUB_ID.fullmatch(model) is not None


def locate(model: str, revision: str | None = None) -> Located:
    """Find a model's files, downloading a Hub model's configuration, weights and small files if needed.

    Args:
        model: A folder, a Hub id, or `BUILT_IN`.
        revision: Branch, tag or commit of a Hub id.

    Raises:
        CheckpointError: No such folder.
        HubError: The Hub does not give us the model.
    """
    if not is_hub_id(model):
        if revision is not None:
            raise CheckpointError(f"--revision goes with a Hub id; {model} is a path")
        folder = _BUILT_IN_FOLDER if model == BUILT_IN and not Path(model).exists() else Path(model)
        if not folder.is_dir():
            raise CheckpointError(f"{model} is not a folder; give a checkpoint folder or a Hub model id")
        return Located(folder, model, None, {})
    return _from_hub(model, revision)


def _from_hub(model: str, revision: str | None) -> Located:
    from huggingface_hub import HfApi, constants, snapshot_download

    def fetch() -> Located:
        if constants.HF_HUB_OFFLINE:
            # What was fetched before; a weight file that is missing is named when the folder is opened.
            cached = snapshot_download(
                model, revision=revision, local_files_only=True, ignore_patterns=_NOT_FETCHED
            )
            return Located(Path(cached), model, Path(cached).name, {})
        info = HfApi().model_info(model, revision=revision, files_metadata=True)
        files = info.siblings or []
        names = {file.rfilename for file in files}
        _refuse_adapter(model, info.sha, names)
        folder = Path(snapshot_download(model, revision=info.sha, ignore_patterns=_NOT_FETCHED))
        weights = _weights_to_fetch(folder, names)
        snapshot_download(model, revision=info.sha, allow_patterns=weights)
        checksums = {file.rfilename: file.lfs.sha256 for file in files if file.lfs is not None}
        return Located(folder, model, info.sha, checksums)

    return ask_hub(model, fetch)


def is_fetched(model: str, revision: str | None = None) -> bool:
    """Return whether all of a Hub model's weights are in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        open_checkpoint(Path(snapshot_download(model, revision=revision, local_files_only=True)))
    except (LocalEntryNotFoundError, CheckpointError):
        return False
    return True


def _weights_to_fetch(folder: Path, names: set[str]) -> list[str]:
    """Return the weight files that transformers would read, and those of sentence-transformers modules."""
    of_modules = sorted(
        f"{module.path}/{name}"
        for module in read_modules(folder)
        for name in MODULE_WEIGHTS
        if module.path and f"{module.path}/{name}" in names
    )
    named = named_weights(read_config(folder), folder)
    if named is not None:
        own = sorted(set(read_index(folder / named).values())) if named.endswith(".json") else [named]
        return [*own, *of_modules]
    for single in (SAFETENSORS, PICKLED):
        if single in names:
            return [single, *of_modules]
        if f"{single}.index.json" in names:
            return [*sorted(set(read_index(folder / f"{single}.index.json").values())), *of_modules]
    raise CheckpointError(f"{folder} holds no weights that transformers reads")


def _refuse_adapter(model: str, revision: str | None, names: set[str]) -> None:
    """Refuse a repository that holds an adapter to be merged, before anything large is fetched."""
    from huggingface_hub import hf_hub_download

    refuse_adapter_among(
        names, model, lambda: Path(hf_hub_download(model, ADAPTER_CONFIG, revision=revision))
    )


def open_remote(model: str, revision: str | None = None) -> Checkpoint:
    """Open a Hub model from its configuration and safetensors headers; no weights are downloaded.

    Where the Hub is not asked (``HF_HUB_OFFLINE``), it is opened from the cache.

    Raises:
        HubError: The Hub does not give us the model, or it has no safetensors weights.
        CheckpointError: Its configuration is not one.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import NotASafetensorsRepoError

    if constants.HF_HUB_OFFLINE:
        return open_checkpoint(_from_hub(model, revision).folder)

    def fetch() -> Checkpoint:
        files = HfApi().model_info(model, revision=revision).siblings or []
        _refuse_adapter(model, revision, {file.rfilename for file in files})
        config = read_config(Path(hf_hub_download(model, "config.json", revision=revision)).parent)
        if named_weights(config, model) not in (None, SAFETENSORS, f"{SAFETENSORS}.index.json"):
            raise NoHeadersError(
                f"{model}: config.json names {named_weights(config, model)} as the weights; fetch it with "
                f"`hf download {model}` and inspect the folder"
            )
        metadata = HfApi().get_safetensors_metadata(model, revision=revision)
        folder = Path(model)
        tensors = {
            name: StoredTensor(name, info.dtype, tuple(info.shape), folder / file_name, info.data_offsets[0])
            for file_name, file in metadata.files_metadata.items()
            for name, info in file.tensors.items()
        }
        files = tuple(folder / name for name in metadata.files_metadata)
        absent = {name: file for name, file in metadata.weight_map.items() if name not in tensors}
        return Checkpoint(folder, config, files, tensors, False, absent=absent)

    try:
        return ask_hub(model, fetch)
    except NotASafetensorsRepoError as error:
        raise NoHeadersError(
            f"{model} has no safetensors weights whose headers could be read; "
            f"fetch it with `hf download {model}` and inspect the folder"
        ) from error


def peek(model: str, revision: str | None = None) -> Checkpoint | None:
    """Return a Hub model's headers if they can be read without a download; None for anything else."""
    if not is_hub_id(model):
        return None
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        return open_remote(model, revision)
    except NoHeadersError:
        return None


def ask_hub(model: str, request: Callable[[], Answer]) -> Answer:
    """Run a request to the Hub and say in one line why it failed.

    Raises:
        HubError: The model does not exist, is private or gated, or the Hub cannot be reached.
        OutputError: The Hub cache cannot be written.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not our user's business
    try:
        return request()
    except GqkvaError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise OutputError(
                f"{model} cannot be stored in the Hub cache: {error.strerror}; set HF_HOME"
            ) from error
        if not is_of_the_hub(error):
            raise
        raise HubError(explain(model, error, _REFUSALS)) from error
