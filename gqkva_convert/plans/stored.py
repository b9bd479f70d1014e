"""The JSON form of a plan's parts, and what is wrong with it in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationError, ValidationInfo

from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.errors import GqkvaError, LayoutError, UsageError, placed
from gqkva_convert.heads import HeadLayout
from gqkva_convert.records.record import Checked, first_fault

# Pydantic's names of wrong types, in words.
_TYPES = {
    "dataclass_type": "an object",
    "int_type": "a whole number",
    "string_type": "text",
    "tuple_type": "a list of names",
}


def _read_order(order: Any, info: ValidationInfo) -> Any:
    if order is None and "source" in info.data:
        return tuple(range(info.data["source"].num_attention_heads))
    if not isinstance(order, list):
        raise LayoutError(f"an order is a list of heads, found {order!r:.80}")
    return tuple(order)


def _written_order(order: tuple[int | None, ...]) -> list[int | None] | None:
    return None if order == tuple(range(len(order))) else list(order)


# Null where all heads keep their places.
StoredOrder = Annotated[
    tuple[int | None, ...], PlainValidator(_read_order), Checked, PlainSerializer(_written_order)
]
StoredLayout = Annotated[
    HeadLayout, PlainValidator(HeadLayout.from_dict), Checked, PlainSerializer(HeadLayout.to_dict)
]


def _read_settings(data: Any) -> DataSettings:
    known = [field.name for field in fields(DataSettings)]
    if not isinstance(data, dict):
        raise UsageError(f"calibration is an object, found {data!r:.80}")
    for key in data:
        if key not in known:
            raise placed(UsageError(f"calibration has no {key!r}"), key)
    if "data" not in data:
        raise UsageError("calibration has no 'data'")
    return DataSettings(**data)


# Numbers of settings are never guessed from texts.
StoredSettings = Annotated[DataSettings, PlainValidator(_read_settings), Checked, PlainSerializer(asdict)]


def refusal(error: ValidationError) -> GqkvaError:
    """Return our error for JSON that is no plan, with the place of the fault."""
    fault = first_fault(error)
    *above, key = fault.place or ("",)
    if fault.error is not None:
        kind = LayoutError if isinstance(fault.error, LayoutError) else UsageError
        return placed(kind(fault.said), *fault.place)
    if fault.kind == "missing":
        said = f"{_name(above, 'the ')} has no {key!r}"
    elif fault.kind == "unexpected_keyword_argument":
        said = f"{_name(above, 'a ')} has no {key!r}"
    elif fault.kind in _TYPES:
        said = f"{_name(fault.place, 'a ')} is {_TYPES[fault.kind]}, found {fault.found!r:.80}"
    else:
        said = f"{_name(fault.place, 'a ')}: {fault.said}, found {fault.found!r:.80}"
    return placed(UsageError(said), *fault.place)


def _name(place: Sequence[str | int], article: str) -> str:
    """Name the object at a place: a plan, a block of it, or a part by its key."""
    names = [part for part in place if isinstance(part, str)]
    if not names:
        return f"{article}plan"
    return f"{article}block" if names == ["blocks"] and len(place) > 1 else names[-1]
