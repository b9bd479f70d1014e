"""Sizes and counts as a person reads them."""

from __future__ import annotations

import pytest

from gqkva_convert.units import human_bytes, human_count


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (2.5e9, "2.50 GB"), (7e15, "7000.00 TB")],
)
def test_sizes_are_in_powers_of_ten(count: float, said: str) -> None:
    """As disks and the Hub count them."""
    assert human_bytes(count) == said


@pytest.mark.parametrize(("count", "said"), [(999, "999"), (1500, "1.50 k"), (70.6e9, "70.60 B")])
def test_counts_of_parameters_have_their_usual_letters(count: float, said: str) -> None:
    assert human_count(count) == said
