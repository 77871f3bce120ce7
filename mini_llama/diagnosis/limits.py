"""Limits for running a student's modules."""

SECONDS = 10.0  # for one component
START_SECONDS = 120.0  # for importing torch on a slow disk
MEMORY_BYTES = 4 * 2**30
MAX_SOURCE_BYTES = 2**20  # of one file
MAX_FILES = 200
MAX_TOKENIZER_BYTES = 2**21
MAX_DEPTH = 4  # of folders that are searched for llama.py
