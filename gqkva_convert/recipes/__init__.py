"""Recipes: several commands, written down once, run as often as needed."""
