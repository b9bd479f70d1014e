"""Recipes: several commands in one YAML file; steps that are up to date are skipped."""
