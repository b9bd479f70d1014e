"""A plan turned into one step per output tensor."""
