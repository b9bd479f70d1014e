"""A plan turned into one step per output tensor, and the steps carried out."""
