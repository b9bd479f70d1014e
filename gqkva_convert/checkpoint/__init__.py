"""Files: reading checkpoints, writing shards, publishing a folder; no maths."""
