"""Converted folders, and a Hub on this machine."""

from converted_folders import grouped, hub, made, stock  # noqa: F401
