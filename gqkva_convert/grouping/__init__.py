"""Choosing which heads become one, from how alike they are; arrays alone, no model and no disk."""
