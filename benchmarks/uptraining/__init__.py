"""What `uptrain.py` measures, a module each."""
