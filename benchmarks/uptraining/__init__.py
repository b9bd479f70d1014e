"""The measurements of `uptrain.py`, one module each."""
