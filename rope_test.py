"""The assignment's check of rope.py: python rope_test.py [--reference FILE], or pytest.

The inputs are the course's; the expected tensors are the course's file.
"""

import argparse
import sys
import unittest
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch

from rope import apply_rotary_emb

REFERENCE = "rotary_embedding_actual.data"
SHARED = Path(__file__).resolve().parent.parent / "shared" / "reference"
HEAD_DIM, MAX_SEQ_LEN = 4, 20


def load_reference(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.load(path, weights_only=True)


def rotated_constants() -> tuple[torch.Tensor, torch.Tensor]:
    """Query 2 and key 3 everywhere, (1, 2, 2, 4), rotated."""
    query, key = 2 * torch.ones(1, 2, 2, HEAD_DIM), 3 * torch.ones(1, 2, 2, HEAD_DIM)
    return apply_rotary_emb(query, key, HEAD_DIM, MAX_SEQ_LEN)


def check(path: Path) -> None:
    """Raise AssertionError with the largest difference unless both tensors match."""
    for actual, expected in zip(rotated_constants(), load_reference(path), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-8, rtol=1e-5)


def test_apply_rotary_emb() -> None:
    paths = [folder / REFERENCE for folder in (Path(), SHARED) if (folder / REFERENCE).exists()]
    if not paths:
        raise unittest.SkipTest(f"no {REFERENCE} is here: bash setup.sh downloads it")
    for path in paths:
        check(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, default=Path(REFERENCE))
    reference = parser.parse_args().reference
    if not reference.exists():
        sys.exit(f"{reference} is missing: get it with bash setup.sh")
    try:
        load_reference(reference)
    except Exception as error:  # torch has no specific error for an invalid file
        sys.exit(f"{reference} is no reference data ({type(error).__name__})")
    try:
        check(reference)
    except AssertionError as error:
        sys.exit(f"Rotary embedding test failed: {error}")
    print("Rotary embedding test passed!")


if __name__ == "__main__":
    main()
