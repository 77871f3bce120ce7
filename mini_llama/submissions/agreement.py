"""What a submission's prompting files and its text at temperature 0 have in common with reference
outputs.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from mini_llama.assignment.agreement import Agreement, Labels, compare_labels, compare_text
from mini_llama.submissions.rules import GREEDY_TEXT
from mini_llama.submissions.standard import Standard


def compare_all(
    labels: Mapping[str, Sequence[int]], text: str, standard: Standard
) -> Iterator[Agreement]:
    """What can be compared with any reference; `labels` are by file."""
    commands: dict[str, list[Labels]] = defaultdict(list)
    for file, found in labels.items():
        known = {name: r for name, r in standard.references.items() if file in r.labels}
        if known:
            data_name = standard.expected.predictions[file].data_name
            tokens = standard.tokens.get(data_name)
            references = {name: reference.labels[file] for name, reference in known.items()}
            runs = {name: reference.runs.get(file, 0) for name, reference in known.items()}
            one = Labels(file, found, references, runs, data_name if tokens else None, tokens)
            commands[data_name.rpartition("-")[0]].append(one)
    for files in commands.values():
        yield from compare_labels(files, standard.edition)
    texts = {
        name: (r.text, r.text_runs) for name, r in standard.references.items() if r.text is not None
    }
    if text and texts:
        edition, prompts = standard.edition, standard.expected.prompts
        yield compare_text(GREEDY_TEXT, text, texts, edition, prompts)
