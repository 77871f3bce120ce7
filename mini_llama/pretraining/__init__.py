"""Training from scratch."""
