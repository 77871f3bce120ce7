"""Compare the outputs of finished graded commands with the reference outputs."""

from collections.abc import Iterator, Sequence

from config import DEFAULT_EDITION
from mini_llama.assignment.agreement import Agreement, compare_labels
from mini_llama.assignment.figures import SPLITS
from mini_llama.assignment.graded_run import compare_known_text, known_labels
from mini_llama.assignment.options import Options
from mini_llama.assignment.reference_outputs import reference_outputs
from mini_llama.assignment.reviews import read_examples, read_label_names, with_prompt
from mini_llama.reproduction.outputs import read_predictions
from mini_llama.reproduction.runs import Run


def compare_runs(runs: Sequence[Run]) -> Iterator[Agreement]:
    """Compare the prompting outputs and the text at temperature 0 of successful runs of the real
    model. Raises OSError or ValueError for damaged outputs.
    """
    for run in runs:
        edition = run.options.edition or DEFAULT_EDITION
        if edition not in reference_outputs():
            continue
        if run.options.option == "generate":
            text = run.outputs[0].read_text(encoding="utf-8")
            yield compare_known_text(text.rstrip("\n"), edition)
        elif run.options.option == "prompt":
            found = (known_labels(questions(run.options, s), predicted(run, s)) for s in SPLITS)
            yield from compare_labels([labels for labels in found if labels], edition)


def predicted(run: Run, split: str) -> list[int]:
    """The labels that a run predicted for a split."""
    return read_predictions(run, split)[1]


def questions(options: Options, split: str) -> list[str]:
    """The sentences of a split, each with its question."""
    examples = read_examples(getattr(options, split))
    asked = with_prompt(examples, read_label_names(options.label_names))
    return [example.sentence for example in asked]
