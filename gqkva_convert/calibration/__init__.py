"""Running a model over a little data and keeping statistics of what its attention blocks read."""
