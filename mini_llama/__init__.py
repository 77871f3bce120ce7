"""Everything except the modules that the assignment names and the commands."""
