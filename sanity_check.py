"""The assignment's check of the whole model against reference embeddings.

python sanity_check.py [--checkpoint FILE] [--reference FILE], or pytest sanity_check.py. The
arithmetic of every edition is tried, and the table says which the reference data matches and how
far off the others are. Exit status 0: one matches; 1: none does; 2: a file is bad; 3: a file is
not there.
"""

import argparse
import math
import sys
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import bundled
from checkpoint import WrongNormError, load_plain
from config import EDITIONS
from llama import load_pretrained
from options import default_of

CHECKPOINT = default_of("pretrained_model_path")
REFERENCE = "sanity_check.data"
HELP = "get it with bash setup.sh, or name another"
# The course's own comparison; looser ones let a wrong norm or mask pass.
ATOL, RTOL = 1e-5, 1e-3
TOKENS = torch.tensor(
    [
        [101, 7592, 2088, 102, 0, 0, 0, 0],
        [101, 7592, 15756, 2897, 2005, 17953, 2361, 102],
    ]
)


@dataclass(frozen=True)
class Comparison:
    """How far one edition's embeddings are from the reference."""

    edition: str
    matches: bool
    absolute: float
    relative: float


def load_reference(path: str | Path) -> dict[str, torch.Tensor]:
    """Logits (2, 1, V) and hidden_states (2, 8, dim). Raises ValueError for another file."""
    reference = load_plain(path)
    for name in ("logits", "hidden_states"):
        if not (isinstance(reference, dict) and isinstance(reference.get(name), torch.Tensor)):
            raise ValueError(f"{path} holds no tensor {name!r}: it is no reference data; {HELP}")
    return reference


def embed(checkpoint: str | Path, edition: str) -> dict[str, torch.Tensor]:
    """What the model gives for the check's token ids."""
    model = load_pretrained(checkpoint, edition=edition)
    is_bundled = Path(checkpoint) == bundled.CHECKPOINT
    tokens = TOKENS % model.config.vocab_size if is_bundled else TOKENS
    if model.config.vocab_size <= tokens.max():
        raise ValueError(
            f"{checkpoint} has a vocabulary of {model.config.vocab_size}, and the check's token "
            f"ids reach {TOKENS.max()}: name the checkpoint that the reference is of"
        )
    with torch.inference_mode():
        logits, hidden_states = model(tokens)
    return {"logits": logits, "hidden_states": hidden_states}


def compare(checkpoint: str | Path, reference: dict[str, torch.Tensor]) -> Iterator[Comparison]:
    """Try every edition. Raises OSError or ValueError for a bad checkpoint."""
    for edition in EDITIONS:
        matches, absolute, relative = True, 0.0, 0.0
        try:
            embeddings = embed(checkpoint, edition)
        except WrongNormError:
            yield Comparison(edition, False, math.inf, math.inf)
            continue
        for name, actual in embeddings.items():
            expected = reference[name]
            if actual.shape != expected.shape:
                raise ValueError(
                    f"{name} of {checkpoint} has shape {list(actual.shape)}, the reference "
                    f"{list(expected.shape)}: name the checkpoint that the reference is of"
                )
            difference = (actual - expected).abs()
            absolute = max(absolute, difference.max().item())
            relative = max(relative, (difference.max() / expected.abs().max()).item())
            matches &= torch.allclose(actual, expected, atol=ATOL, rtol=RTOL)
        yield Comparison(edition, matches, absolute, relative)


def report(comparisons: list[Comparison]) -> bool:
    """Print the table; True if any edition matches."""
    print(f"{'edition':<12} {'largest error':>14} {'of the largest':>15}")
    for row in comparisons:
        verdict = "matches" if row.matches else ""
        print(f"{row.edition:<12} {row.absolute:>14.2e} {row.relative:>15.2e}  {verdict}".rstrip())
    matching = [row.edition for row in comparisons if row.matches]
    if matching:
        print(f"The reference data is of the arithmetic of {', '.join(matching)}.")
        print("Your Llama implementation is correct!")
    return bool(matching)


def test_sanity_check() -> None:
    for path in (CHECKPOINT, REFERENCE):
        if not Path(path).exists():
            raise unittest.SkipTest(f"{path} is not here: bash setup.sh downloads it")
    comparisons = list(compare(CHECKPOINT, load_reference(REFERENCE)))
    assert any(row.matches for row in comparisons), comparisons


def choose_files(args: argparse.Namespace) -> None:
    """Fill in the default files, the bundled ones where neither is here and none was named."""
    is_named = args.checkpoint is not None or args.reference is not None
    is_real = Path(CHECKPOINT).exists() or Path(REFERENCE).exists()
    if not (is_named or is_real) and bundled.REFERENCE.exists():
        bundled.announce("model and its reference embeddings")
        args.checkpoint, args.reference = bundled.CHECKPOINT, bundled.REFERENCE
    args.checkpoint = args.checkpoint or CHECKPOINT
    args.reference = args.reference or REFERENCE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", help=f"the model (default: {CHECKPOINT})")
    parser.add_argument("--reference", help=f"what it should give (default: {REFERENCE})")
    args = parser.parse_args()
    choose_files(args)
    for path in (args.checkpoint, args.reference):
        if not Path(path).exists():
            print(f"sanity_check.py: {path} does not exist: {HELP}", file=sys.stderr)
            sys.exit(3)
    try:
        matched = report(list(compare(args.checkpoint, load_reference(args.reference))))
    except (ValueError, OSError) as error:
        print(f"sanity_check.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    if not matched:
        sys.exit(
            "sanity_check.py: no edition's arithmetic gives the reference data: "
            "the smallest error is nearest; wrong weights make all of them large"
        )


if __name__ == "__main__":
    main()
