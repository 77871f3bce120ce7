"""One module a checkpoint format; nothing else knows the format.

A new format is a module with a `FORMAT` (base.Format), which takes its place in reading.FORMATS.
What it can write checkpoint.py offers as soon as options.TARGETS names it.
"""
