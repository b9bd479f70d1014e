"""Reading data sets, and what a model needs to read them; no model is run here."""
