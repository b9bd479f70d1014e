"""The files beside the weights: tokenizer, processor, generation settings, chat template, licence."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gqkva_convert.checkpoint.adapters import ADAPTER_CONFIG
from gqkva_convert.checkpoint.jsonfile import read_json, write_json
from gqkva_convert.checkpoint.modules import MODULE_WEIGHTS, read_modules
from gqkva_convert.errors import CheckpointError

REPORT = "gqkva_report.json"
EVALUATION = "gqkva_evaluation.json"
BENCH = "gqkva_bench.json"
# Measurements of a folder's weights, and plots of these: invalid for other weights.
BENCH_PICTURE = "gqkva_bench.png"
PAGE = "report.html"
PICTURES = (
    "report-heads.png",
    "report-sizes.png",
    "report-errors.png",
    "report-quality.png",
    "report-loss.png",
)
MEASURED = frozenset({EVALUATION, BENCH, BENCH_PICTURE, PAGE, *PICTURES, "README.md"})
# The report beside a GGUF file.
GGUF_REPORT = "gguf_report.json"
# Where training is reported of folders that are no conversion.
TRAINING = "gqkva_training.json"

# Weights of every format, indexes to them, and training leftovers: stale once the weights change.
_STALE_ENDINGS = (
    ".safetensors",
    ".bin",
    ".h5",
    ".msgpack",
    ".ot",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".ggml",
    ".onnx",
    ".onnx_data",
    ".index.json",
    ".npz",
    ".tflite",
    ".lock",
)
_STALE_NAMES = (
    frozenset(
        {"config.json", REPORT, GGUF_REPORT, TRAINING, "training.json", "trainer_state.json", "params.json"}
    )
    | MEASURED
)
# Configurations that may name code, as config.json may.
_NAMES_CODE = frozenset(
    {
        "tokenizer_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
    }
)
# Folders that transformers or sentence-transformers read beside the weights.
_FOLDERS = ("additional_chat_templates", "[0-9]_*")
# Why something is left behind that a user should know of.
INPUT_CODE = "names code that is not carried; the class of transformers is loaded, as without remote code"
STALE_ADAPTER = "names an adapter that is not here, and transformers would look for it"


def carried_files(folder: Path, weights: Collection[Path] = ()) -> tuple[dict[str, Path], dict[str, str]]:
    """Divide a checkpoint's other files into those that go with a conversion and those that do not.

    Args:
        folder: The checkpoint.
        weights: Its weight files; links to what lies beside them are followed (`is_followed`).

    Returns:
        Relative name to file for those carried, and relative name to reason for those left behind.

    Raises:
        CheckpointError: A file that would be carried is a link that is not followed.
    """
    folder = folder.resolve()
    carried: dict[str, Path] = {}
    left: dict[str, str] = {}
    of_modules = module_weights(folder)
    nested = [path for sub in folders_beside(folder) for path in sub.iterdir()]
    for path in sorted([*folder.iterdir(), *nested]):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(".") or not path.is_file() or name == "config.json":
            continue
        reason = _left_behind(path, folder, is_of_module=name in of_modules)
        if reason is not None:
            left[name] = reason
        else:
            _require_followed(path, folder, weights)
            carried[name] = path
            if name in _NAMES_CODE and "auto_map" in _settings(path):
                left[f"auto_map of {name}"] = INPUT_CODE
    return carried, left


def _settings(path: Path) -> dict[str, Any]:
    """Return the settings in a file; none where it cannot be read, as is reported when it is copied."""
    try:
        data = read_json(path)
    except CheckpointError:
        return {}
    return data if isinstance(data, dict) else {}


def folders_beside(folder: Path) -> list[Path]:
    """Return the folders beside the weights that transformers or sentence-transformers read."""
    named = [folder / module.path for module in read_modules(folder) if module.path]
    found = [sub for pattern in _FOLDERS for sub in folder.glob(pattern)]
    return sorted({sub for sub in [*named, *found] if sub.is_dir()})


def module_weights(folder: Path) -> dict[str, Path]:
    """Return the weights of a sentence-transformers model's modules, by relative name.

    They read what the transformer gives, which a conversion keeps, and so stay valid.
    """
    paths = [module.path for module in read_modules(folder) if module.path]
    names = [f"{path}/{name}" for path in paths for name in MODULE_WEIGHTS]
    return {name: folder / name for name in names if (folder / name).is_file()}


def _left_behind(path: Path, folder: Path, *, is_of_module: bool) -> str | None:
    if path.suffix == ".py":
        return "custom code; the result needs none"
    if path.parent == folder and path.name == ADAPTER_CONFIG:
        return STALE_ADAPTER
    if path.parent == folder and path.name in _STALE_NAMES:
        return "describes the source"
    if path.name.endswith(_STALE_ENDINGS) and not is_of_module:
        return "weights or training state of the source"
    return None


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a file is in the folder, or among the blobs of the Hub cache behind a snapshot."""
    resolved = path.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":
        allowed.append((folder.parent.parent / "blobs").resolve())
    return any(resolved.is_relative_to(root) for root in allowed)


def _require_followed(path: Path, folder: Path, weights: Collection[Path]) -> None:
    if not is_followed(path, folder, weights):
        target = path.resolve()
        raise CheckpointError(
            f"{path} is a link to {target}, neither in the folder nor beside the weights; if it belongs to "
            f"the model, put a copy there: cp --remove-destination {target} {path}"
        )


def is_followed(path: Path, folder: Path, weights: Collection[Path] = ()) -> bool:
    """Return whether a link may be read and copied in place of a file; what is no link may be.

    A folder of links to another checkpoint is followed: weights of a model lie in that other folder, and the
    link leads to the file of its own name there. Any other link could give away a private file of the
    reader's, since the result may be uploaded, and whoever made the folder chose where it leads.
    """
    if is_inside(path, folder):
        return True
    resolved, name = path.resolve(), path.relative_to(folder)
    homes = {weight.resolve().parent for weight in weights}
    is_blob = resolved.parent.name == "blobs" and (resolved.parents[1] / "snapshots").is_dir()
    return any(resolved == home / name or (is_blob and resolved.parent == home) for home in homes)


def copy_files(files: dict[str, Path], target: Path) -> None:
    """Copy files to a folder; a link becomes a copy of the file it points to.

    Configurations of tokenizers and processors lose ``auto_map``, which names code that is not copied.
    """
    for name, path in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
        if path.name in _NAMES_CODE:
            data = read_json(path)
            if isinstance(data, dict) and data.pop("auto_map", None) is not None:
                write_json(target / name, data)
