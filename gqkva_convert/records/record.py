"""The base of all records: typed, and written and read by one class without losing keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

from gqkva_convert.checkpoint.jsonfile import read_json
from gqkva_convert.errors import CheckpointError, GqkvaError, place_of

# A loss may be infinite or no number where training failed; a measurement may not.
Loss = Annotated[float, Field(allow_inf_nan=True)]


class Record(BaseModel):
    """A record beside weights. Keys that this version does not know are kept."""

    # Names with model_ are ours, not pydantic's.
    model_config = ConfigDict(allow_inf_nan=False, extra="allow", frozen=True, protected_namespaces=())

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON data, with the keys that it was made with or read with."""
        return self.model_dump(by_alias=True, exclude_unset=True)


Kind = TypeVar("Kind", bound=Record)


def checked(kind: type[Kind], data: Any, refuse: Callable[[str], GqkvaError]) -> Kind:
    """Read JSON data as a record; ``refuse`` makes the error of the first fault, a field and its message."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        fault = first_fault(error)
        field = ".".join(map(str, fault.place)) or "its top level"
        raise refuse(f"{field}: {fault.said}") from error


def read_record(path: Path, kind: type[Kind], command: str) -> Kind | None:
    """Read the record that a command left in a folder; None where the file does not exist.

    Raises:
        CheckpointError: The file is damaged or of another version; names the field.
    """
    if not path.is_file():
        return None
    return checked(
        kind,
        read_json(path),
        lambda fault: CheckpointError(
            f"{path} is not what `{command}` writes: {fault}; remove it or measure again"
        ),
    )


def _checked(data: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(data)
    except GqkvaError as error:
        raise PydanticCustomError("refused", "refused", {"error": error}) from error


# Reads a value whose class refuses with our own errors, and adds the place to them.
Checked = WrapValidator(_checked)


class Fault(NamedTuple):
    """The first thing that is wrong with JSON data.

    Attributes:
        place: Keys and numbers that lead to it.
        said: Description of the fault.
        kind: Pydantic's name of the fault.
        found: The value there.
        error: Our own error, where a class of ours refused the value.
    """

    place: tuple[str | int, ...]
    said: str
    kind: str
    found: Any
    error: GqkvaError | None


def first_fault(error: ValidationError) -> Fault:
    """Return the first fault; an unknown key, which may be a misspelt one, goes before a missing one."""
    faults = error.errors()
    first = next((fault for fault in faults if fault["type"] == "unexpected_keyword_argument"), faults[0])
    place, ours = first["loc"], first.get("ctx", {}).get("error")
    if not isinstance(ours, GqkvaError):
        return Fault(place, first["msg"], first["type"], first["input"], None)
    return Fault((*place, *place_of(ours)), str(ours), "refused", first["input"], ours)
