"""Predictions and generated texts against reference outputs, and what their differences show."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from config import EDITIONS
from mini_llama.assignment.batch_size import BatchSizes, Lines, find_batch_size, same_padding
from mini_llama.assignment.reference_outputs import BATCH_SIZE, LARGEST_DRIFT

# Share of lines that float drift may change where it was never measured.
DRIFT = 0.01
# Of the real stories42M.pt on sst-dev, lines that differ from the edition's reference:
# eps outside the norm's square root 20, a causal mask in a bidirectional edition 651, attention
# with random weights 861.
SMALL_ERROR = 0.04
CAUSAL = (0.5, 0.68)
# Cohen's kappa: 0 is what unrelated predictions of the same frequencies reach, 1 is equality.
UNRELATED = 0.1
NEARER = 0.15  # how much more alike than the edition's the other mask's reference must be


@dataclass(frozen=True)
class Agreement:
    """A file against the reference outputs. `verdict`: "equal", "drift", or "differs".

    `share`: of lines that are equal to edition `against`'s, or of words up to the first other one.
    `looks_like` are the editions whose outputs these are; `cause` is in short what made lines
    differ, empty where that does not show.
    """

    file: str
    verdict: str
    share: float
    against: str
    looks_like: tuple[str, ...]
    message: str
    cause: str = ""


@dataclass(frozen=True)
class Labels:
    """The labels of a prompting file and those of the references, by edition, with the number of
    independent runs behind each (0: unknown).

    `data_name` and `tokens` (reference_outputs.token_counts) are of the courses' data, None for
    other data.
    """

    file: str
    found: Sequence[int]
    references: Mapping[str, Sequence[int]]
    runs: Mapping[str, int]
    data_name: str | None = None
    tokens: tuple[int, ...] | None = None

    def different(self, edition: str) -> list[int]:
        """The lines, from 0, that differ from an edition's reference."""
        pairs = zip(self.found, self.references[edition], strict=True)
        return [i for i, (a, b) in enumerate(pairs) if a != b]

    @property
    def drift(self) -> int:
        """Lines that may differ between correct runs."""
        if self.data_name is None:
            return int(DRIFT * len(self.found) + 1e-9)
        return LARGEST_DRIFT[self.data_name]

    def kappa(self, edition: str) -> float:
        """Cohen's kappa: agreement beyond chance; 1 for two that are the same class throughout."""
        reference, n = self.references[edition], len(self.found)
        ours, theirs = Counter(self.found), Counter(reference)
        by_chance = sum(ours[label] * theirs[label] for label in ours) / n**2
        if by_chance == 1:
            return 1.0
        return (1 - len(self.different(edition)) / n - by_chance) / (1 - by_chance)


def runs_text(runs: int, kind: str = "independent ") -> str:
    """ " (7 independent runs)"; empty where no number is known."""
    return f" ({runs} {kind if runs > 1 else ''}run{'s' * (runs > 1)})" if runs else ""


def compare_labels(files: Sequence[Labels], edition: str) -> list[Agreement]:
    """The prompting files of one command line by line, with the references of `edition`, or with
    the nearest if there is none of it. What a batch size shows, it shows in all of them together.
    """
    batch = None
    if any(len(file.different(_against(file, edition))) > file.drift for file in files):
        batch = _find_batch_size(files)
    return [_compare(file, edition, batch) for file in files]


def _against(file: Labels, edition: str) -> str:
    if edition in file.references:
        return edition
    return min(file.references, key=lambda name: len(file.different(name)))


def _find_batch_size(files: Sequence[Labels]) -> tuple[str, BatchSizes] | None:
    """The reference and the batch size that explain best which lines differ, if any do."""
    best = None
    shared = [name for name in files[0].references if all(name in f.references for f in files)]
    for name in shared:
        if any(f.kappa(name) < UNRELATED for f in files):
            continue  # one class on every line is equal wherever the reference has that class
        lines = [Lines(f.tokens, frozenset(f.different(name))) for f in files if f.tokens]
        if lines:
            found = find_batch_size(lines)
            if found.is_likely and (best is None or found.evidence > best[1].evidence):
                best = name, found
    return best


def _compare(file: Labels, edition: str, batch: tuple[str, BatchSizes] | None) -> Agreement:
    against = _against(file, edition)
    lines, n = file.different(against), len(file.found)
    share = 1 - len(lines) / n
    counts = {name: len(file.different(name)) for name in file.references}
    fewest = min(counts.values())
    nearest = tuple(name for name, count in counts.items() if count == fewest)
    if not lines:
        of = "" if against == edition else f" of {against}"
        what = f"{n} of {n} predictions equal the reference{of}{runs_text(file.runs[against])}"
        return Agreement(file.file, "equal", share, against, nearest, what)
    first = f"first in line {', '.join(str(i + 1) for i in lines[:5])}"
    differ = f"{len(lines)} of {n} lines differ from {against} ({len(lines) / n:.1%}, {first})"
    alike = nearest if fewest <= file.drift else ()
    if batch is not None and (not alike or against in alike):
        name, sizes = batch
        what = f"{differ}: {_batch_text(file, name, against, sizes)}"
        return Agreement(file.file, "differs", share, against, alike, what, _cell(sizes))
    if len(lines) <= file.drift:
        most = f"; correct runs on other machines differ in at most {file.drift}"
        what = f"{differ}: float drift{most if file.data_name else ''}"
        return Agreement(file.file, "drift", share, against, nearest, what)
    cause, what = _reason(file, against, alike, counts)
    return Agreement(file.file, "differs", share, against, alike, f"{differ}: {what}", cause)


def _batch_text(file: Labels, name: str, against: str, sizes: BatchSizes) -> str:
    """What the lines show that both batch sizes pad to the same length."""
    assert file.tokens is not None  # else no batch size was found
    same = same_padding(file.tokens, sizes.sizes[0])
    unequal = len(same.intersection(file.different(name)))
    agree = f"all {len(same)}" if not unequal else f"{len(same) - unequal} of {len(same)}"
    text = f"{sizes} instead of {BATCH_SIZE}"
    if sizes.sizes == (1,):
        text += ", or padding that is masked, or on the left, or of another id"
    if not sizes.is_proved:
        text = f"perhaps {text}"
    if file.references[name] != file.references[against]:
        text = f"another arithmetic, that of {name}, and {text}"
    return f"{text}: {agree} lines that are padded to the same length either way agree"


def _cell(sizes: BatchSizes) -> str:
    low, high = min(sizes.sizes), max(sizes.sizes)
    return f"batch {low}" if low == high else f"batch {low}-{high}"


def _reason(
    file: Labels, against: str, alike: tuple[str, ...], counts: Mapping[str, int]
) -> tuple[str, str]:
    """Why lines differ, in short and in a sentence, as far as they show it."""
    fewest, n = min(counts.values()), len(file.found)
    nearest = ", ".join(name for name, count in counts.items() if count == fewest)
    if alike:
        contrast = _contrast(against, alike[0])
        names = ", ".join(alike)
        what = f"another arithmetic; it looks like {names} ({fewest} differ){contrast}"
        return alike[0], what
    if len(set(file.found)) == 1:
        return "one class", f"class {file.found[0]} on every line, as without trained weights"
    unlike = _unrelated(file, against) or _masked(file, against)
    if unlike:
        return unlike
    unequal = counts[against] / n
    if file.data_name and unequal <= SMALL_ERROR:
        what = f"more than float drift changes in correct runs ({file.drift} at most)"
        example = "as eps outside the norm's root, which changes about 20 of 1101"
        return "small error", f"{what}: a small error in the arithmetic, {example}"
    like = "like none of the references"
    if len(counts) > 1:
        like += f" (nearest is {nearest}, {fewest} differ)"
    is_wide = file.data_name is not None and CAUSAL[0] <= unequal <= CAUSAL[1]
    if is_wide and against in EDITIONS and EDITIONS[against].attention == "bidirectional":
        like += "; about as many lines as a causal mask changes in a bidirectional edition"
    return "", like


def _unrelated(file: Labels, against: str) -> tuple[str, str] | None:
    """Predictions that no reference has more in common with than chance gives."""
    kappas = [file.kappa(name) for name in file.references]
    is_far = len(file.different(against)) > len(file.found) / 3
    if max(kappas) >= UNRELATED or not is_far:
        return None
    what = "unrelated to every reference (no more agreement than chance gives)"
    guess = "as with random weights in attention: a foreign checkpoint loaded with strict=False?"
    return "unrelated", f"{what}, {guess}"


def _masked(file: Labels, against: str) -> tuple[str, str] | None:
    """Predictions much nearer to references of the other attention mask than to any of the
    edition's own.
    """
    kappas: dict[bool, list[float]] = {True: [], False: []}
    own = EDITIONS[against].attention if against in EDITIONS else None
    for name in file.references:
        if name in EDITIONS:
            kappas[EDITIONS[name].attention == own].append(file.kappa(name))
    if not all(kappas.values()) or max(kappas[False]) < max(kappas[True]) + NEARER:
        return None
    other = "causal" if own == "bidirectional" else "bidirectional"
    counts = {
        name: len(file.different(name))
        for name in file.references
        if name in EDITIONS and EDITIONS[name].attention == other
    }
    nearest = min(counts, key=lambda name: counts[name])
    what = f"nearest is {nearest}, {counts[nearest]} differ, whose attention is {other}"
    return f"{other}?", f"{what}: probably {other} attention instead of {own}"


def _contrast(edition: str, other: str) -> str:
    """What another edition's arithmetic has that this one's has not."""
    if edition not in EDITIONS or other not in EDITIONS:
        return ""
    ours, theirs = EDITIONS[edition], EDITIONS[other]
    parts = []
    if ours.attention != theirs.attention:
        parts.append(f"{theirs.attention} attention instead of {ours.attention}")
    if ours.norm != theirs.norm:
        parts.append(f"{theirs.norm} instead of {ours.norm}")
    return f": {', '.join(parts)}" if parts else ""


def compare_text(
    file: str,
    text: str,
    references: Mapping[str, tuple[str, int]],
    edition: str,
    prompts: Sequence[str],
) -> Agreement:
    """The text at temperature 0; each reference with the number of runs behind it, 0 if unknown.

    One near-tie that falls otherwise changes all that follows, so that a share of equal words,
    unlike one of lines, proves no other arithmetic.
    """
    shares = {name: _common_words(text, known, prompts) for name, (known, _) in references.items()}
    equal = tuple(name for name, (known, _) in references.items() if known == text)
    nearest = max(shares, key=lambda name: shares[name][0])
    against = edition if edition in shares else (*equal, nearest)[0]
    common, n = shares[against]
    share = common / n if n else math.nan
    if against in equal:
        of = "" if against == edition else f" of {against}"
        what = f"the text equals the reference{of}{runs_text(references[against][1])}"
        return Agreement(file, "equal", 1.0, against, equal, what)
    what = f"the first {common} of {n} words after the prompt are those of {against}"
    cause = ""
    if equal:
        cause, what = equal[0], f"{what}; it is the text of {', '.join(equal)}"
    elif nearest != against and shares[nearest][0] > common:
        what += f"; nearest is {nearest}, with {shares[nearest][0]}"
    return Agreement(file, "differs", share, against, equal, what, cause)


def _common_words(text: str, reference: str, prompts: Sequence[str]) -> tuple[int, int]:
    """How many words after the prompt are the reference's, up to the first other one, and how
    many the reference has; none if the prompts are two.
    """
    prompt = next((start for start in prompts if reference.startswith(start)), "")
    words = reference.removeprefix(prompt).split()
    found = text.removeprefix(prompt).split() if text.startswith(prompt) else []
    common = takewhile(lambda pair: pair[0] == pair[1], zip(words, found, strict=False))
    return len(list(common)), len(words)
