"""Tokenizers of every format."""
