"""Losses of a student, the models whose outputs they compare, teachers."""
