"""Compare a submission's prompting outputs and its text at temperature 0 with the references."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from mini_llama.assignment.agreement import Agreement, LabelComparison, compare_labels, compare_text
from mini_llama.submissions.answer_key import AnswerKey
from mini_llama.submissions.rules import GREEDY_TEXT


def compare_with_references(
    labels: Mapping[str, Sequence[int]], text: str, answer_key: AnswerKey
) -> Iterator[Agreement]:
    """The comparisons that any reference allows; `labels` are by file."""
    commands: dict[str, list[LabelComparison]] = defaultdict(list)
    for file, found in labels.items():
        known = {name: r for name, r in answer_key.references.items() if file in r.labels}
        if known:
            data_name = answer_key.expected.predictions[file].data_name
            tokens = answer_key.tokens.get(data_name)
            references = {name: reference.labels[file] for name, reference in known.items()}
            runs = {name: reference.runs.get(file, 0) for name, reference in known.items()}
            one = LabelComparison(
                file, found, references, runs, data_name if tokens else None, tokens
            )
            commands[data_name.rpartition("-")[0]].append(one)
    for files in commands.values():
        yield from compare_labels(files, answer_key.edition)
    texts = {
        name: (r.text, r.text_runs)
        for name, r in answer_key.references.items()
        if r.text is not None
    }
    if text and texts:
        edition, prompts = answer_key.edition, answer_key.expected.prompts
        yield compare_text(GREEDY_TEXT, text, texts, edition, prompts)
