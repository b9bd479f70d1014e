"""Blocks run on calibration data: rules compared, merged heads fitted to the original's output."""
