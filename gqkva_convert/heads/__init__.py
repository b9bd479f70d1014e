"""Head layouts, named variants and groupings; no torch."""

from gqkva_convert.heads.groupings import (
    GROUPINGS,
    merged_groups,
    neighbour_order,
    random_order,
    without_reordering,
)
from gqkva_convert.heads.layout import ROLES, HeadLayout, divisors
from gqkva_convert.heads.place import Place, place_name, place_seed
from gqkva_convert.heads.variants import Variant

__all__ = [
    "GROUPINGS",
    "ROLES",
    "HeadLayout",
    "Place",
    "Variant",
    "divisors",
    "merged_groups",
    "neighbour_order",
    "place_name",
    "place_seed",
    "random_order",
    "without_reordering",
]
