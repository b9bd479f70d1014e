"""`gqkva plan`: every choice that depends on weights or data, made before anything is written."""
