"""Reading data sets, and the tokenizers and image processors that models need; runs no model."""
