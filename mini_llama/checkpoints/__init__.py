"""Checkpoint files of every format, read, checked, converted and loaded."""
