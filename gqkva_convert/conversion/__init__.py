"""The commands that write and prove checkpoints: convert, export, init, inspect, verify."""
