"""Arguments and options of a command, read from the signature of the public function of its name."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# What an option is called on the command line, where that is not its parameter's name.
_FLAGS = {"begin_at": "from", "changes": "set", "metrics": "metric", "new_card": "card", "others": "set"}
# What recipes called some options before.
_OLD_NAMES = {"recipe": "settings", "folder": "model"}
# Parameters that a path may be given for, or the name of a model or of data.
_NAMED = frozenset({"model", "against", "tokenizer", "teacher", "data", "held_out", "calibration"})
# What text can be read as; of several types of one parameter the first counts.
_KINDS = (Path, str, float, int, bool)


@dataclass(frozen=True)
class Option:
    """An argument or option of a command.

    Attributes:
        name: Name of the function's parameter; recipes call it so, too.
        kind: Type that its text is read as.
        takes: ``one`` value; ``list``, one text with commas; ``several``, an option that is repeated; or
            ``pairs``, an option ``NAME=VALUE`` that is repeated, which are the function's other keywords.
        default: Value where it is not given.
        is_required: Whether it must be given.
        is_argument: Whether the command line takes it by its place.
    """

    name: str
    kind: type
    takes: Literal["one", "list", "several", "pairs"]
    default: Any
    is_required: bool
    is_argument: bool

    @property
    def flag(self) -> str:
        return f"--{_FLAGS.get(self.name, self.name).replace('_', '-')}"

    @property
    def is_repeated(self) -> bool:
        return self.takes in ("several", "pairs")

    def read(self, texts: Sequence[str]) -> Any:
        """Return the value that texts of the command line stand for.

        Raises:
            ValueError: A text is not of the option's kind.
        """
        if self.takes == "pairs":
            pairs = [text.partition("=") for text in texts]
            wrong = next((text for text, pair in zip(texts, pairs, strict=True) if not pair[1]), None)
            if wrong is not None:
                raise ValueError(f"{self.flag} {wrong}: give NAME=VALUE")
            return {name.strip().replace("-", "_"): value.strip() for name, _, value in pairs}
        try:
            values = [self.kind(text) for text in texts]
        except ValueError as error:
            wanted = "a whole number" if self.kind is int else "a number"
            raise ValueError(f"{self.flag} {' '.join(texts)}: give {wanted}") from error
        return values if self.is_repeated else values[0]


def options_of(function: Callable[..., Any]) -> tuple[Option, ...]:
    """Return the options of a public function: its parameters whose types can be read from text.

    Callbacks and whole settings objects are for Python alone. Parameters that are given by their place and
    have no default are arguments, and so is an output folder that has one.
    """
    hints = get_type_hints(function)
    found = (_option(each, hints[each.name]) for each in inspect.signature(function).parameters.values())
    return tuple(option for option in found if option is not None)


def find_option(options: Iterable[Option], name: str) -> Option | None:
    """Return the option of a name: its parameter's, its flag's, or what it was called before."""
    names = (name, _OLD_NAMES.get(name))
    found = [each for each in options if each.name in names or _FLAGS.get(each.name) == name]
    return found[0] if found else None


def keywords(options: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to call a function with; options that are None are left to its defaults.

    Other keywords, of ``pairs``, come last and replace options of their names.
    """
    given = {option: values[option.name] for option in options if values.get(option.name) is not None}
    found = {option.name: value for option, value in given.items() if option.takes != "pairs"}
    for option, value in given.items():
        if option.takes == "pairs":
            found |= value
    return found


def _option(parameter: inspect.Parameter, hint: Any) -> Option | None:
    if parameter.kind is parameter.VAR_KEYWORD:
        return Option(parameter.name, str, "pairs", None, False, False)
    types_ = _alternatives(hint)
    kind = _kind(parameter.name, types_)
    sequences = [each for each in types_ if get_origin(each) in (Sequence, Iterable, tuple)]
    takes: Literal["one", "list", "several"] = "one"
    if sequences:
        takes = "several" if kind is None else "list"
        kind = kind or _kind(parameter.name, _alternatives(get_args(sequences[0])[0]))
    if kind is None:
        return None
    is_required = parameter.default is parameter.empty
    by_place = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    is_argument = by_place and (is_required or (parameter.name == "out" and parameter.default is None))
    default = None if is_required else parameter.default
    return Option(parameter.name, kind, takes, default, is_required, is_argument)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _kind(name: str, alternatives: Sequence[Any]) -> type | None:
    kinds = [kind for kind in _KINDS if kind in alternatives]
    if kinds[:1] == [Path] and name in _NAMED:
        return str
    return kinds[0] if kinds else None
