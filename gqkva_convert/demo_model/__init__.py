"""The built-in model and the main job done on it."""
