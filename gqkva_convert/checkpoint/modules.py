"""The modules of a sentence-transformers model: what ``modules.json`` says stands behind the transformer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gqkva_convert.checkpoint.damage import refuse_stand_in
from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.errors import CheckpointError, FamilyError

MODULES = "modules.json"
# The weights of a module, the first that is there is read.
MODULE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PACKAGE = "sentence_transformers."


@dataclass(frozen=True)
class Module:
    """A module of a sentence-transformers model.

    Attributes:
        kind: Name of its class: ``Transformer``, ``Pooling``, ``Dense``, ``Normalize``...
        path: Its folder, relative; empty for the model's own.
        code: Module of Python in which its class is.
    """

    kind: str
    path: str
    code: str


def read_modules(folder: Path) -> tuple[Module, ...]:
    """Read a folder's modules, in the order in which they run; none without ``modules.json``.

    Raises:
        CheckpointError: The file is no list of modules, or names a folder outside the model's.
    """
    path = folder / MODULES
    if not path.is_file():
        return ()
    data = read_json(path)
    if not isinstance(data, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("type"), str) and isinstance(entry.get("path"), str)
        for entry in data
    ):
        raise CheckpointError(f"{path} is no list of sentence-transformers modules with type and path")
    modules = []
    for entry in data:
        place = PurePosixPath(entry["path"])
        if place.is_absolute() or ".." in place.parts or "\\" in entry["path"]:
            raise CheckpointError(f"{path}: the module {entry['path']!r} lies outside the folder")
        code, _, kind = entry["type"].rpartition(".")
        modules.append(Module(kind, "" if str(place) == "." else str(place), code))
    return tuple(modules)


def require_one_transformer(folder: Path) -> None:
    """Refuse modules that would not follow a conversion of the weights beside ``modules.json``.

    Raises:
        FamilyError: A module has code of its own, or holds another transformer; it would be lost, or be
            loaded unconverted.
        CheckpointError: ``modules.json`` is not readable, or weights of a module are something else.
    """
    for module in read_modules(folder):
        if not f"{module.code}.".startswith(_PACKAGE):
            raise FamilyError(
                f"{folder}: {MODULES} names the class {module.code}.{module.kind}, code of the model's own "
                "that is never run here; remove that module if the model does not need it"
            )
        inner = folder / module.path
        for name in MODULE_WEIGHTS if module.path else ():
            if (inner / name).is_file():
                refuse_stand_in(inner / name)
        nested = next((path for path in sorted(inner.rglob("config.json")) if _is_model(path)), None)
        if module.path and nested is not None:
            raise FamilyError(
                f"{folder}: the module {module.path} holds a transformer of its own, which would stay as it "
                f"is; convert {nested.parent} and put the result in its place"
            )


def _is_model(config: Path) -> bool:
    data = read_json(config)
    return isinstance(data, dict) and "model_type" in data


def transformer_folder(folder: Path) -> str | None:
    """Return where a folder without a configuration of its own keeps its transformer, if modules say so."""
    for module in read_modules(folder):
        if module.path and (folder / module.path / "config.json").is_file() and module.kind == "Transformer":
            return module.path
    return None
