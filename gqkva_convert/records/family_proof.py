"""The proof that a generated table describes a configuration, kept in the report and in the cache."""

from __future__ import annotations

import re

from gqkva_convert.records.record import Record

# Licences of merge rules that mix features; others need equal heads alone.
_MIXING = ("values", "keys")


class FamilyProof(Record):
    """What held on a small random model of a configuration, converted by its table.

    Attributes:
        model_type: The family.
        licences: What may be done: ``merge`` equal heads and ``reorder`` heads; ``values`` and ``keys`` where
            mixing the features of a value or key head is undone by its readers.
        errors: Largest change of a logit by each test, relative to the largest logit.
        control: The smallest change that an edit of one layer alone made.
        heads: Attention and key/value heads of the small model.
        layers: Its layers.
        seed: Seed of its weights.
        versions: Versions of the packages.
        modeling_sha256: SHA-256 of transformers' modelling file.
        names: Names of the tensors that its class stores, without numbers of layers and experts.
        held_names: The same of its parameters, which transformers reads as well.
    """

    model_type: str
    licences: dict[str, bool]
    errors: dict[str, float]
    control: float
    heads: tuple[int, int]
    layers: int
    seed: int
    versions: dict[str, str] = {}
    modeling_sha256: str
    names: list[str]
    held_names: list[str]

    @property
    def unlicensed(self) -> str:
        """Return what mixing features would change, as part of a sentence; empty if nothing."""
        missing = [name for name in _MIXING if not self.licences[name]]
        if not missing:
            return ""
        error = max(self.errors[f"{name}, large"] for name in missing)
        return (
            f"which this {self.model_type} configuration does not allow for {' and '.join(missing)} "
            f"(the logits of a small model change by {error:.0e})"
        )


def without_numbers(name: str) -> str:
    """Return a tensor's name without the numbers of layers and experts."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "N", name)
