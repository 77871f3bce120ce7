"""A small file of tiktoken's ranks."""

import base64
from pathlib import Path

import pytest

MERGES = [b"th", b"the", b" the", b"e1", b"\n\n"]


def write_ranks(path: Path, tokens: list[bytes]) -> str:
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    path.write_bytes(b"".join(lines))
    return f"tiktoken:{path}"


@pytest.fixture
def ranks(tmp_path) -> str:
    """Bytes are their own ids, the merges 256 to 260, and <|endoftext|> is 261."""
    pytest.importorskip("tiktoken")
    return write_ranks(tmp_path / "tiny.tiktoken", [bytes([b]) for b in range(256)] + MERGES)
