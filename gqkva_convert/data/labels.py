"""Labels of a data set as the numbers that a model answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from gqkva_convert.errors import DataError

# What transformers calls labels that nobody has named.
_UNNAMED = re.compile(r"label\d+")


def label_numbers(found: Any, column: str, config: Any, data: str) -> Callable[[Any], int]:
    """Return the function from a record's label to the number of the model's answer.

    Labels with names, such as folders of images, get the number of the model's label of that name, whatever
    their order; names that are numbers are these numbers. Where the names tell nothing, as for a
    model whose labels nobody has named, the data's numbers are the model's.

    Args:
        found: A data set, as `load_records` gives it.
        column: Its labels.
        config: The model's configuration.
        data: What the user called the data.

    Raises:
        DataError: The labels are no numbers, are none of the model's, as where a part for testing keeps them
            secret, or mean other answers than the model's of the same number.
    """
    try:
        given = sorted(int(value) for value in found.unique(column))
    except (TypeError, ValueError) as error:
        raise DataError(f"{data}: the labels in {column!r} are no whole numbers") from error
    names = getattr(found.features[column], "names", None)
    numbers = None if names is None else _by_name(names, config, data)
    answers = given if numbers is None or given[0] < 0 else [numbers[label] for label in given]
    if answers and (max(answers) >= config.num_labels or min(answers) < 0):
        raise DataError(
            f"{data} has labels from {min(answers)} to {max(answers)}, the model answers "
            f"{config.num_labels}; give data with its labels, or another --split"
        )
    return int if numbers is None else lambda label: numbers[int(label)]


def _by_name(names: list[str], config: Any, data: str) -> list[int] | None:
    """Match each label of the data with the model's; None where they are the same as far as is known."""
    known = {_plain(name): int(number) for number, name in config.id2label.items()}
    if all(_plain(name) in known for name in names):
        return [known[_plain(name)] for name in names]
    if all(name.isdigit() for name in names):
        return [int(name) for name in names]
    for number, name in enumerate(names):
        if known.get(_plain(name), number) != number:
            other = next(name for name in names if _plain(name) not in known)
            raise DataError(
                f"{data}: label {number} is {name!r}, which the model answers with "
                f"{known[_plain(name)]}, and the model knows no {other!r}; call the "
                "labels as config.json does in id2label"
            )
    return None


def _plain(name: Any) -> str:
    """Strip a name of what spellings differ in; nothing for names that say nothing."""
    plain = re.sub(r"[\W_]+", "", str(name).casefold())
    return f"unnamed {plain}" if _UNNAMED.fullmatch(plain) else plain
