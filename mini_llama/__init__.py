"""All but the assignment's own modules and the commands."""
