"""Requests for a conversion, and the defaults of what they do not state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gqkva_convert.calibration.data import DataSettings
from gqkva_convert.errors import UsageError
from gqkva_convert.heads import GROUPINGS, Variant
from gqkva_convert.plans.plan import REFINEMENTS
from gqkva_convert.transforms.merge import RULES


@dataclass(frozen=True)
class Request:
    """A request for a conversion.

    Attributes:
        gq: Query heads to keep; None keeps all.
        gkv: Key/value heads to keep; None keeps all.
        kv_budget: Key/value heads of all layers together, as ``"25%"`` of the source's or a number; each
            layer then keeps as many as lose least together.
        blocks: Kinds of attention, separated by commas; None for all.
        grouping: Which heads become one; None for ``loss`` with data and ``neighbour`` without.
        merge: How heads become one; None for ``auto`` with data and ``closed-form`` without.
        refine: Refinements, separated by commas; None for ``output`` with data.
        seed: Seed of everything drawn at random.
        dtype: Dtype wanted; None keeps each tensor's.
        calibration: Data to run through the model; None for weights alone.
    """

    gq: int | None = None
    gkv: int | None = None
    kv_budget: str | None = None
    blocks: str | None = None
    grouping: str | None = None
    merge: str | None = None
    refine: str | None = None
    seed: int = 0
    dtype: str | None = None
    calibration: DataSettings | None = None

    def __post_init__(self) -> None:
        if self.kv_budget is not None and (self.gkv is not None or self.gq is not None):
            raise UsageError("--kv-budget chooses the numbers of heads itself; leave --gkv and --gq out")
        if self.kv_budget is not None:
            object.__setattr__(self, "kv_budget", self.kv_budget.replace(" ", ""))
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: give a number from 0 on")
        grouping = GROUPINGS.get(self.chosen_grouping)  # a name that is not known is refused with the plan
        if self.gq is not None and grouping is not None and not grouping.takes_grids:
            raise UsageError(
                f"--grouping {self.chosen_grouping} chooses key/value heads alone; with --gq use "
                f"{', '.join(name for name, one in GROUPINGS.items() if one.takes_grids)}"
            )
        if self.calibration is None:
            if self.merge == "auto":
                raise UsageError(
                    "--merge auto compares rules on data: give --calibration, or choose one rule"
                )
            if self.refinements:
                raise UsageError(f"--refine {self.refine} fits to data: give --calibration")
            if grouping is not None and grouping.needs_data:
                raise UsageError(
                    f"--grouping {self.grouping} compares heads on data: give --calibration, or use weights"
                )

    @property
    def chosen_grouping(self) -> str:
        if self.grouping is not None:
            return self.grouping
        return "neighbour" if self.calibration is None and self.kv_budget is None else "loss"

    @property
    def chosen_merge(self) -> str:
        if self.merge is not None:
            return self.merge
        return "closed-form" if self.calibration is None else "auto"

    @property
    def refinements(self) -> tuple[str, ...]:
        if self.refine is None:
            merge = RULES.get(self.chosen_merge)
            return () if self.calibration is None or merge is None or not merge.is_joint else ("output",)
        return parse_refinements(self.refine)

    def arguments(self) -> list[str]:
        """Return the options of `gqkva convert` that ask for this."""
        names = ("gq", "gkv", "kv_budget", "blocks", "grouping", "merge", "refine", "dtype")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        options["seed"] = self.seed or None
        if self.calibration is not None:
            options["calibration"] = self.calibration.data
            options["calibration_samples"] = self.calibration.samples
            options["calibration_length"] = self.calibration.length
        columns = () if self.calibration is None else self.calibration.column
        given = {name: value for name, value in options.items() if value is not None}
        pairs = [*given.items(), *(("column", name) for name in columns)]
        return [text for name, value in pairs for text in (f"--{name.replace('_', '-')}", str(value))]

    @property
    def variant(self) -> Variant | None:
        return None if self.kv_budget is not None else Variant(self.gq, self.gkv)


# Options of `gqkva plan` and `gqkva convert` that make a request.
WISHES = (*(each.name for each in fields(Request)), "calibration_samples", "calibration_length", "column")


def given_wishes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a public function that make a request, where they are not None."""
    return {name: arguments[name] for name in WISHES if arguments[name] is not None}


def make_request(
    *,
    calibration: str | Path | DataSettings | None = None,
    calibration_samples: int | None = None,
    calibration_length: int | None = None,
    column: Sequence[str] | None = None,
    seed: int = 0,
    **wishes: Any,
) -> Request:
    """Make a request from the options of a command.

    Args:
        calibration: Name of the data to run through the model, or `DataSettings`.
        calibration_samples: Sequences or images of it; None for 128.
        calibration_length: Tokens of each sample.
        column: Columns of it to read.
        seed: As `Request`.
        wishes: The other attributes of `Request`.

    Raises:
        UsageError: The options contradict each other.
    """
    sizes = {"samples": calibration_samples, "length": calibration_length}
    given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    if calibration is None and column:
        raise UsageError("--column goes with --calibration; leave it out")
    if calibration is None and given:
        raise UsageError("--calibration-samples and --calibration-length go with --calibration")
    if column:
        given["column"] = tuple(column)
    if isinstance(calibration, DataSettings):
        if given:
            wrong = next(iter(given)) if column else f"calibration_{min(given)}"
            raise UsageError(f"DataSettings say everything themselves; leave out {wrong}")
    elif calibration is not None:
        calibration = DataSettings(str(calibration), seed=seed, **given)
    return Request(**wishes, seed=seed, calibration=calibration)


def parse_refinements(text: str | None) -> tuple[str, ...]:
    """Return the refinements of a comma-separated text in the order they run; ``none`` or None for none.

    Raises:
        UsageError: There is no such refinement.
    """
    if text is None or text.strip() == "none":
        return ()
    asked = {name.strip() for name in text.split(",")}
    if not asked <= set(REFINEMENTS):
        wrong = ", ".join(repr(name) for name in sorted(asked - set(REFINEMENTS)))
        raise UsageError(f"no refinement {wrong}; choose of {', '.join(REFINEMENTS)}, or none alone")
    return tuple(name for name in REFINEMENTS if name in asked)
