"""Compare predictions and generated texts with reference outputs, and explain the differences."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from config import EDITIONS
from mini_llama.assignment.batch_size import BatchSizes, Lines, find_batch_size, same_padding
from mini_llama.assignment.reference_outputs import BATCH_SIZE, MAX_DRIFT

# Share of lines that float drift may change in data where it was not measured.
DRIFT_SHARE = 0.01
# Lines of sst-dev that differ from the edition's reference with the real stories42M.pt: 20 with eps
# outside the norm's square root, 651 with a causal mask in a bidirectional edition, 861 with random
# attention weights.
SMALL_ERROR_SHARE = 0.04
CAUSAL_SHARES = (0.5, 0.68)
# Cohen's kappa: 0 for unrelated predictions with the same class frequencies, 1 for equal ones.
UNRELATED_KAPPA = 0.1
KAPPA_MARGIN = 0.15  # by which the other mask's reference must be closer than the edition's own


@dataclass(frozen=True)
class Agreement:
    """The result of comparing a file with references. `verdict`: "equal", "drift", or "differs".

    `share` is that of lines equal to edition `against`'s, or of words before the first difference.
    `looks_like` holds the editions whose outputs these are; `cause` names the likely cause of the
    differences in a few words, empty if unknown.
    """

    file: str
    verdict: str
    share: float
    against: str
    looks_like: tuple[str, ...]
    message: str
    cause: str = ""


@dataclass(frozen=True)
class LabelComparison:
    """The labels of a prompting output and those of the references, by edition, with the number of
    independent runs that gave each (0: unknown).

    `data_name` and `tokens` (reference_outputs.token_counts) are None unless the data is the
    courses'.
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
        """How many lines may differ between correct runs."""
        if self.data_name is None:
            return int(DRIFT_SHARE * len(self.found) + 1e-9)
        return MAX_DRIFT[self.data_name]

    def kappa(self, edition: str) -> float:
        """Cohen's kappa: agreement beyond chance; 1 if both have the same class on every line."""
        reference, n = self.references[edition], len(self.found)
        ours, theirs = Counter(self.found), Counter(reference)
        by_chance = sum(ours[label] * theirs[label] for label in ours) / n**2
        if by_chance == 1:
            return 1.0
        return (1 - len(self.different(edition)) / n - by_chance) / (1 - by_chance)


def runs_text(runs: int, kind: str = "independent ") -> str:
    """ " (7 independent runs)", or "" if the number is unknown."""
    return f" ({runs} {kind if runs > 1 else ''}run{'s' * (runs > 1)})" if runs else ""


def compare_labels(files: Sequence[LabelComparison], edition: str) -> list[Agreement]:
    """Compare the prompting outputs of one command line by line with the references of `edition`,
    or with the nearest references if it has none. The batch size is judged on all files together.
    """
    batch = None
    if any(len(file.different(_reference_for(file, edition))) > file.drift for file in files):
        batch = _find_batch_size(files)
    return [_compare(file, edition, batch) for file in files]


def _reference_for(file: LabelComparison, edition: str) -> str:
    if edition in file.references:
        return edition
    return min(file.references, key=lambda name: len(file.different(name)))


def _find_batch_size(files: Sequence[LabelComparison]) -> tuple[str, BatchSizes] | None:
    """The reference and the batch size that best explain which lines differ, if any does."""
    best = None
    shared = [name for name in files[0].references if all(name in f.references for f in files)]
    for name in shared:
        if any(f.kappa(name) < UNRELATED_KAPPA for f in files):
            continue  # a single class agrees wherever the reference has that class, by chance
        lines = [Lines(f.tokens, frozenset(f.different(name))) for f in files if f.tokens]
        if lines:
            found = find_batch_size(lines)
            if found.is_likely and (best is None or found.evidence > best[1].evidence):
                best = name, found
    return best


def _compare(
    file: LabelComparison, edition: str, batch: tuple[str, BatchSizes] | None
) -> Agreement:
    against = _reference_for(file, edition)
    lines, n = file.different(against), len(file.found)
    share = 1 - len(lines) / n
    counts = {name: len(file.different(name)) for name in file.references}
    fewest = min(counts.values())
    nearest = tuple(name for name, count in counts.items() if count == fewest)
    if not lines:
        of = "" if against == edition else f" of {against}"
        message = f"{n} of {n} predictions equal the reference{of}{runs_text(file.runs[against])}"
        return Agreement(file.file, "equal", share, against, nearest, message)
    first = f"first in line {', '.join(str(i + 1) for i in lines[:5])}"
    differ = f"{len(lines)} of {n} lines differ from {against} ({len(lines) / n:.1%}, {first})"
    alike = nearest if fewest <= file.drift else ()
    if batch is not None and (not alike or against in alike):
        name, sizes = batch
        message = f"{differ}: {_batch_text(file, name, against, sizes)}"
        return Agreement(file.file, "differs", share, against, alike, message, _batch_cause(sizes))
    if len(lines) <= file.drift:
        most = f"; correct runs on other machines differ in at most {file.drift}"
        message = f"{differ}: float drift{most if file.data_name else ''}"
        return Agreement(file.file, "drift", share, against, nearest, message)
    cause, message = _likely_cause(file, against, alike, counts)
    return Agreement(file.file, "differs", share, against, alike, f"{differ}: {message}", cause)


def _batch_text(file: LabelComparison, name: str, against: str, sizes: BatchSizes) -> str:
    """Name the batch size, and how many of the lines padded to the same length agree."""
    assert file.tokens is not None  # else no batch size was found
    same = same_padding(file.tokens, sizes.sizes[0])
    unequal = len(same.intersection(file.different(name)))
    agree = f"all {len(same)}" if not unequal else f"{len(same) - unequal} of {len(same)}"
    text = f"{sizes} instead of {BATCH_SIZE}"
    if sizes.sizes == (1,):
        text += ", or padding that is masked, on the left, or another id"
    if not sizes.is_proved:
        text = f"perhaps {text}"
    if file.references[name] != file.references[against]:
        text = f"the arithmetic of {name}, and {text}"
    return f"{text}: {agree} lines that are padded to the same length either way agree"


def _batch_cause(sizes: BatchSizes) -> str:
    low, high = min(sizes.sizes), max(sizes.sizes)
    return f"batch {low}" if low == high else f"batch {low}-{high}"


def _likely_cause(
    file: LabelComparison, against: str, alike: tuple[str, ...], counts: Mapping[str, int]
) -> tuple[str, str]:
    """The likely cause of the differences, in a few words ("" if unknown) and in a sentence."""
    fewest, n = min(counts.values()), len(file.found)
    nearest = ", ".join(name for name, count in counts.items() if count == fewest)
    if alike:
        contrast = _arithmetic_difference(against, alike[0])
        names = ", ".join(alike)
        message = f"a different arithmetic; it looks like {names} ({fewest} differ){contrast}"
        return alike[0], message
    if len(set(file.found)) == 1:
        return "one class", f"class {file.found[0]} on every line, as with untrained weights"
    unlike = _unrelated(file, against) or _other_mask(file, against)
    if unlike:
        return unlike
    unequal = counts[against] / n
    if file.data_name and unequal <= SMALL_ERROR_SHARE:
        message = f"more than the float drift of correct runs ({file.drift} at most)"
        example = "such as eps outside the norm's square root, which changes about 20 of 1101"
        return "small error", f"{message}: a small error in the arithmetic, {example}"
    message = "like none of the references"
    if len(counts) > 1:
        message += f" (nearest is {nearest}, {fewest} differ)"
    is_wide = file.data_name is not None and CAUSAL_SHARES[0] <= unequal <= CAUSAL_SHARES[1]
    if is_wide and against in EDITIONS and EDITIONS[against].attention == "bidirectional":
        message += "; about as many lines as a causal mask changes in a bidirectional edition"
    return "", message


def _unrelated(file: LabelComparison, against: str) -> tuple[str, str] | None:
    """The cause if no reference agrees with the predictions more than by chance, else None."""
    kappas = [file.kappa(name) for name in file.references]
    is_far = len(file.different(against)) > len(file.found) / 3
    if max(kappas) >= UNRELATED_KAPPA or not is_far:
        return None
    message = "unrelated to every reference (no more agreement than by chance)"
    guess = "as with random attention weights: was another checkpoint loaded with strict=False?"
    return "unrelated", f"{message}, {guess}"


def _other_mask(file: LabelComparison, against: str) -> tuple[str, str] | None:
    """The cause if a reference with the other attention mask is much closer to the predictions than
    any with the edition's own, else None.
    """
    kappas: dict[bool, list[float]] = {True: [], False: []}
    own = EDITIONS[against].attention if against in EDITIONS else None
    for name in file.references:
        if name in EDITIONS:
            kappas[EDITIONS[name].attention == own].append(file.kappa(name))
    if not all(kappas.values()) or max(kappas[False]) < max(kappas[True]) + KAPPA_MARGIN:
        return None
    other = "causal" if own == "bidirectional" else "bidirectional"
    counts = {
        name: len(file.different(name))
        for name in file.references
        if name in EDITIONS and EDITIONS[name].attention == other
    }
    nearest = min(counts, key=lambda name: counts[name])
    message = f"nearest is {nearest}, which has {other} attention ({counts[nearest]} differ)"
    return f"{other}?", f"{message}: probably {other} attention instead of {own}"


def _arithmetic_difference(edition: str, other: str) -> str:
    """How another edition's arithmetic differs from this one's."""
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
    """Compare the text at temperature 0; `references` come with the number of runs that gave each,
    0 if unknown.

    A near-tie that is decided differently changes all the following words, so unlike a share of
    equal lines, a share of equal words does not identify another arithmetic.
    """
    shares = {name: _common_words(text, known, prompts) for name, (known, _) in references.items()}
    equal = tuple(name for name, (known, _) in references.items() if known == text)
    nearest = max(shares, key=lambda name: shares[name][0])
    against = edition if edition in shares else (*equal, nearest)[0]
    common, n = shares[against]
    share = common / n if n else math.nan
    if against in equal:
        of = "" if against == edition else f" of {against}"
        message = f"the text equals the reference{of}{runs_text(references[against][1])}"
        return Agreement(file, "equal", 1.0, against, equal, message)
    message = f"the first {common} of {n} words after the prompt equal those of {against}"
    cause = ""
    if equal:
        cause, message = equal[0], f"{message}; it is the text of {', '.join(equal)}"
    elif nearest != against and shares[nearest][0] > common:
        message += f"; nearest is {nearest}, with {shares[nearest][0]}"
    return Agreement(file, "differs", share, against, equal, message, cause)


def _common_words(text: str, reference: str, prompts: Sequence[str]) -> tuple[int, int]:
    """How many words after the prompt equal the reference's, up to the first difference, and how
    many the reference has; 0 equal words if the prompts differ.
    """
    prompt = next((start for start in prompts if reference.startswith(start)), "")
    words = reference.removeprefix(prompt).split()
    found = text.removeprefix(prompt).split() if text.startswith(prompt) else []
    common = takewhile(lambda pair: pair[0] == pair[1], zip(words, found, strict=False))
    return len(list(common)), len(words)
