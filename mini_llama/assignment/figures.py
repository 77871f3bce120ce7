"""The courses' published accuracies of the graded commands, and the bands that they grade by.

They hold for the real stories42M.pt, the courses' data and the options of the graded commands.
"""

from collections.abc import Sequence

from mini_llama.assignment.reference_outputs import reference_outputs

SPLITS = ("dev", "test")
# How far an accuracy may lie from the reference, by data set.
BANDS = {"sst": 0.05, "cfimdb": 0.15}

Figure = tuple[float, float | None]
# Edition(s) and option → SST dev, SST test, CFIMDB dev, CFIMDB test: mean and standard deviation
# over 10 seeds; where only one number was published, it has no deviation.
_ROWS: tuple[tuple[tuple[str, ...], str, tuple[Figure | None, ...]], ...] = (
    (("mmia", "fall2025"), "prompt", ((0.237, 0.0), (0.25, 0.0), (0.49, 0.0), (0.109, 0.0))),
    (
        ("mmia", "fall2025"),
        "finetune",
        ((0.411, 0.025), (0.399, 0.023), (0.833, 0.06), (0.473, 0.198)),
    ),
    (("mmia", "fall2025"), "lora", ((0.275, 0.024), (0.269, 0.02), (0.51, 0.051), (0.506, 0.239))),
    (("fall2024", "spring2025"), "prompt", ((0.213, None), (0.224, None), (0.498, None), None)),
    (("fall2024", "spring2025"), "finetune", ((0.414, 0.014), (0.418, 0.017), (0.8, 0.115), None)),
    (("spring2026",), "prompt", ((0.197, None), (0.176, None), (0.514, None), (0.232, None))),
)
_COLUMNS = [(dataset, split) for dataset in BANDS for split in SPLITS]
# (edition, option, data set, split) → mean and standard deviation.
REFERENCE: dict[tuple[str, str, str, str], Figure] = {
    (edition, option, *column): figure
    for editions, option, figures in _ROWS
    for edition in editions
    for column, figure in zip(_COLUMNS, figures, strict=True)
    if figure is not None
}
# What the predictions of independent runs give (reference_outputs.py) where the courses' text has
# another figure.
MEASURED: dict[tuple[str, str, str, str], float] = {
    ("fall2024", "prompt", "cfimdb", "dev"): 0.502,
    ("spring2025", "prompt", "cfimdb", "dev"): 0.502,
}


def two_figures(edition: str, option: str, dataset: str, split: str) -> str | None:
    """A line for a figure that is one in the course's text and another by its predictions."""
    key = (edition, option, dataset, split)
    if key not in MEASURED:
        return None
    runs = reference_outputs()[edition].runs[f"{dataset}-{split}"]
    published, measured = REFERENCE[key][0], MEASURED[key]
    return (
        f"{edition} {dataset}-{split} {option}: {published:.3f} in the course's text, "
        f"{measured:.3f} by the identical predictions of {runs} independent runs"
    )


def is_placeholder(labels: Sequence[int]) -> bool:
    """Whether all gold labels are one value, as in cfimdb-test.txt: no accuracy means anything."""
    return len(set(labels)) == 1


def verdict(accuracy: float, reference: float, dataset: str) -> str:
    """Where an accuracy lies: within the band around the reference, edges included, or not."""
    difference = accuracy - reference
    if abs(difference) <= BANDS[dataset] + 1e-9:  # 0.461 - 0.411 is a little more than 0.05
        return "within"
    return "below" if difference < 0 else "above"
