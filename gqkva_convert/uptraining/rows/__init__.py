"""The rows a run trains and measures on, and the batches made of them."""
