"""Make each known mistake in our own modules: one file for each component."""
