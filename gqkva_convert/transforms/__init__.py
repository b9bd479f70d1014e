"""Array algebra on heads; no disk."""
