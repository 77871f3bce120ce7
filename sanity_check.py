"""The assignment's check of the whole model against reference embeddings.

python sanity_check.py [--checkpoint FILE] [--reference FILE] [--explain] [--code FOLDER], or pytest
sanity_check.py. The arithmetic of every edition is tried, and the table says which the reference
data matches and how far off the others are. Products are F.linear's, as in the courses' code; what
the faster ones of training and generation give is printed below the table. With --explain every
component of the model in llama.py is first held against the formulas in float64, and the first
place that differs is named. With --code it is the model of that folder's llama.py, which is run in
a process of its own, under limits of time and memory. Exit status 0: one matches; 1: none does, or
a file is bad or missing, or the model fails; 2: wrong usage.
"""

import argparse
import inspect
import math
import sys
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if sys.flags.safe_path:  # python -P and PYTHONSAFEPATH leave a command's own folder out
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import mini_llama  # noqa: F401  # says which packages are missing, before one is imported

# isort: split

import torch

from config import EDITIONS, resolve_arithmetic
from llama import Llama, load_pretrained
from mini_llama import bundled
from mini_llama.assignment.options import default_of
from mini_llama.checkpoints.record import WrongNormError
from mini_llama.checkpoints.tensor_files import load_plain
from mini_llama.command_line import OneLineParser, one_line_errors
from mini_llama.diagnosis.explanation import (
    Explanation,
    editions_of,
    explain,
    explain_run,
    read_formulas,
)
from mini_llama.diagnosis.formulas import Formulas
from mini_llama.diagnosis.student_model import Question, judge_digests, run_student
from mini_llama.layers.linear import plain_products

PROGRAM = "sanity_check.py"
CHECKPOINT = default_of("pretrained_model_path")
REFERENCE = "sanity_check.data"
HELP = "get it with bash setup.sh, or name another"
# The course's own comparison; looser ones let a wrong norm or mask pass.
ATOL, RTOL = 1e-5, 1e-3
# Shown as the edition if load_pretrained has no such parameter, like the courses' own.
OWN = "your model"
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
    beyond: int = 0  # numbers that are not within the tolerance


def load_reference(path: str | Path) -> dict[str, torch.Tensor]:
    """Logits (2, 1, V) and hidden_states (2, 8, dim). Raises ValueError for another file."""
    reference = load_plain(path)
    for name in ("logits", "hidden_states"):
        if not (isinstance(reference, dict) and isinstance(reference.get(name), torch.Tensor)):
            raise ValueError(f"{path} holds no tensor {name!r}: it is no reference data; {HELP}")
        if not reference[name].isfinite().all():
            raise ValueError(f"{path}: {name} holds numbers that are not finite; {HELP}")
    return reference


def knows_editions() -> bool:
    return "edition" in inspect.signature(load_pretrained).parameters


def load_model(checkpoint: str | Path, edition: str) -> Llama:
    editions = {"edition": edition} if knows_editions() else {}
    return load_pretrained(checkpoint, **editions)


def tokens_for(checkpoint: str | Path, vocab_size: int) -> torch.Tensor:
    """The check's token ids, for the bundled model modulo its vocabulary."""
    tokens = TOKENS % vocab_size if Path(checkpoint) == bundled.CHECKPOINT else TOKENS
    if vocab_size <= tokens.max():
        raise ValueError(
            f"{checkpoint} has a vocabulary of {vocab_size}, and the check's token "
            f"ids reach {TOKENS.max()}: name the checkpoint that the reference is of"
        )
    return tokens


def embed(checkpoint: str | Path, edition: str) -> dict[str, torch.Tensor]:
    """The model's outputs for the check's token ids, by the products in force."""
    model = load_model(checkpoint, edition)
    tokens = tokens_for(checkpoint, model.config.vocab_size)
    with torch.inference_mode():
        logits, hidden_states = model(tokens)
    return {"logits": logits, "hidden_states": hidden_states}


def compare_edition(
    edition: str, embeddings: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]
) -> Comparison:
    """Raises ValueError where the shapes differ."""
    beyond, absolute, relative = 0, 0.0, 0.0
    for name, actual in embeddings.items():
        expected = reference[name]
        if actual.shape != expected.shape:
            raise ValueError(
                f"{name} of the model has shape {list(actual.shape)}, the reference "
                f"{list(expected.shape)}: name the checkpoint that the reference is of"
            )
        difference = (actual - expected).abs()
        absolute = max(absolute, difference.max().item())
        relative = max(relative, (difference.max() / expected.abs().max()).item())
        is_close = torch.isclose(actual, expected, atol=ATOL, rtol=RTOL)
        beyond += int((~is_close).sum())
    return Comparison(edition, beyond == 0, absolute, relative, beyond)


def compare(checkpoint: str | Path, reference: dict[str, torch.Tensor]) -> Iterator[Comparison]:
    """Try every edition. Raises OSError or ValueError for a bad checkpoint."""
    for edition in EDITIONS if knows_editions() else (OWN,):
        try:
            with plain_products():
                embeddings = embed(checkpoint, edition)
            yield compare_edition(edition, embeddings, reference)
        except WrongNormError:
            yield Comparison(edition, False, math.inf, math.inf)


def describe_fast(
    checkpoint: str | Path, reference: dict[str, torch.Tensor], rows: list[Comparison]
) -> str | None:
    """What training and generation's faster products give in the edition that fits best, in a
    sentence; None if that is the same to the last bit.
    """
    plain = min(rows, key=lambda row: (not row.matches, row.relative))
    fast = compare_edition(plain.edition, embed(checkpoint, plain.edition), reference)
    if fast == plain:
        return None
    count = sum(tensor.numel() for tensor in reference.values())
    return (
        f"By the faster product of training and generation, {fast.edition}: largest error "
        f"{fast.absolute:.2e}, {fast.relative:.2e} of the largest; {fast.beyond} of {count} "
        f"numbers are beyond the tolerance, and {plain.beyond} by F.linear."
    )


def compare_float64(
    formulas: Formulas, tokens: torch.Tensor, reference: dict[str, torch.Tensor]
) -> Iterator[Comparison]:
    """What `compare` would yield for a correct model. Raises ValueError where the shapes differ."""
    for name, edition in EDITIONS.items():
        changed = formulas.changed(norm=edition.norm, attention=edition.attention)
        logits, hidden_states, _ = changed.forward(tokens.numpy())
        arrays = {"logits": logits[:, -1:], "hidden_states": hidden_states}
        embeddings = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
        yield compare_edition(name, embeddings, reference)


def explain_files(checkpoint: str | Path, reference: dict[str, torch.Tensor]) -> None:
    """Compare every component of the model with its formula, and print the first that differs.

    The formulas are those of the edition that the reference data matches; if none does, of the
    arithmetic that the checkpoint records, else the default edition's. Raises OSError or
    ValueError.
    """
    formulas, tensors, recorded = read_formulas(checkpoint)
    tokens = tokens_for(checkpoint, formulas.config.vocab_size)
    comparisons = list(compare_float64(formulas, tokens, reference))
    fitting = [row.edition for row in comparisons if row.matches]
    arithmetic = resolve_arithmetic(recorded, edition=next(iter(fitting), None))
    norm, attention = arithmetic.norm, arithmetic.attention
    editions = editions_of(norm, attention)
    model = load_model(checkpoint, editions[0])
    formulas = formulas.changed(norm=norm, attention=attention)
    with plain_products():
        explanation = explain(model, tokens, formulas, tensors)
    print_explanation(explanation, formulas)
    if not fitting:
        nearest = min(comparisons, key=lambda row: row.relative)
        print(
            "The formulas in float64 do not give the reference data in any edition: it is of other "
            f"weights. Nearest: {nearest.edition}, {nearest.relative:.2g} of the largest off."
        )


def print_explanation(explanation: Explanation, formulas: Formulas) -> None:
    norm, attention = formulas.config.norm, formulas.config.attention
    editions = ", ".join(editions_of(norm, attention))
    print(f"Formulas: {norm}, {attention} attention ({editions}).")
    print("\n".join([*explanation.lines(), *explanation.verdict()]))


def compare_code(
    folder: Path, checkpoint: str | Path, reference: dict[str, torch.Tensor], explained: bool
) -> Comparison:
    """Run the model of a folder's llama.py and compare it with the reference; `explained`, print
    every place of it beside its formula before.

    The formulas are those of the edition that the reference data is of, and where it is of none,
    of the nearest. Raises OSError or ValueError.
    """
    formulas, tensors, _ = read_formulas(checkpoint)
    tokens = tokens_for(checkpoint, formulas.config.vocab_size)
    rows = list(compare_float64(formulas, tokens, reference))
    nearest = min(rows, key=lambda row: (not row.matches, row.relative))
    edition = EDITIONS[nearest.edition]
    formulas = formulas.changed(norm=edition.norm, attention=edition.attention)
    question = Question(checkpoint, formulas.config, tokens, nearest.edition)
    student = run_student(folder, question)
    if explained:
        weights = judge_digests(student, tensors)
        print_explanation(explain_run(student.run, weights, tokens, formulas, False), formulas)
        if not nearest.matches:
            print(
                f"The reference data fits no edition within {ATOL:g}: the formulas are of the "
                f"nearest, {nearest.edition}, {nearest.relative:.2g} of the largest off."
            )
    arrays = {"logits": student.run.logits, "hidden_states": student.run.hidden_states}
    found = {name: torch.tensor(array).float() for name, array in arrays.items()}
    return compare_edition(OWN, found, reference)


def report(comparisons: list[Comparison], fast: str | None = None) -> bool:
    """Print the table and the sentence; True if any edition matches."""
    print(f"{'edition':<12} {'largest error':>14} {'of the largest':>15}")
    for row in comparisons:
        verdict = "matches" if row.matches else ""
        print(f"{row.edition:<12} {row.absolute:>14.2e} {row.relative:>15.2e}  {verdict}".rstrip())
    if fast is not None:
        print(fast)
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
    """Fill in the default files: those in --code's folder if they are not here, or the bundled ones
    if none is named and both are missing.
    """
    for name, file in (("checkpoint", CHECKPOINT), ("reference", REFERENCE)):
        path = None if args.code is None else args.code / file
        is_theirs = path is not None and path.is_file() and not Path(file).exists()
        if getattr(args, name) is None and is_theirs:
            setattr(args, name, path)
    is_named = args.checkpoint is not None or args.reference is not None
    is_real = Path(CHECKPOINT).exists() or Path(REFERENCE).exists()
    if not (is_named or is_real) and bundled.REFERENCE.exists():
        bundled.announce("model and its reference embeddings")
        args.checkpoint, args.reference = bundled.CHECKPOINT, bundled.REFERENCE
    args.checkpoint = args.checkpoint or CHECKPOINT
    args.reference = args.reference or REFERENCE


@one_line_errors(PROGRAM)
def main() -> None:
    parser = OneLineParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", help=f"the model (default: {CHECKPOINT})")
    parser.add_argument("--reference", help=f"what it should give (default: {REFERENCE})")
    parser.add_argument("--explain", action="store_true", help="name the first place that differs")
    parser.add_argument(
        "--code", metavar="FOLDER", type=Path, help="examine the model of this folder's llama.py"
    )
    args = parser.parse_args()
    choose_files(args)
    for path in (args.checkpoint, args.reference):
        if not Path(path).exists():
            sys.exit(f"{PROGRAM}: {path} does not exist: {HELP}")
    reference, fast = load_reference(args.reference), None
    if args.code is not None:
        comparisons = [compare_code(args.code, args.checkpoint, reference, args.explain)]
    else:
        if args.explain:
            explain_files(args.checkpoint, reference)
        comparisons = list(compare(args.checkpoint, reference))
        fast = describe_fast(args.checkpoint, reference, comparisons)
    matched = report(comparisons, fast)
    if not matched:
        sys.exit(
            f"{PROGRAM}: no edition's arithmetic gives the reference data: "
            "the smallest error is nearest; wrong weights make all of them large"
        )


if __name__ == "__main__":
    main()
