"""`python -m gqkva_convert`."""

from gqkva_convert.cli import app

app(prog_name="gqkva")
