"""`gqkva plan`: every choice that looks at weights or data, made before anything is written."""
