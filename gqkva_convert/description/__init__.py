"""A converted folder described: its facts, as text, plots, a page and a model card."""
