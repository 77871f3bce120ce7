"""Everything that stands behind the assignment's modules and the commands."""
