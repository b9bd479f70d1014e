"""Training converted models until they answer as well as the original did, and fresh ones from scratch."""
