"""One module a checkpoint format; nothing else knows the formats."""
