"""How each known mistake is made in our own modules: one file a component."""
