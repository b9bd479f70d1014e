"""Array algebra on heads: merge rules, closed forms, alignment, precision; no disk."""
