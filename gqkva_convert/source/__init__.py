"""A checkpoint read through its family's table: its attention blocks and their layouts."""
