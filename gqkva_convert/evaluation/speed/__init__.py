"""How fast a model is and what memory it takes, beside what the device allows; `gqkva bench`."""
