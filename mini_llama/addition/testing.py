"""Test a trained model on additions: greedy decoding, exact match of the whole answer.

Shapes: B questions of one length, T columns.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from addition_lib import CharDataset, make_dataset
from llama import Llama
from mini_llama.addition.additions import PADDING, read_additions
from mini_llama.addition.experiment import TRAINING_CONFIG, load_model, write_results
from mini_llama.addition.options import TestOptions
from mini_llama.inference import generation
from mini_llama.inference.sampling import Sampler
from mini_llama.resume import digest
from utils import choose_device, read_json, seed_everything

BATCH_SIZE = 1000  # questions


def run(options: TestOptions) -> None:
    """Test a checkpoint, and write the results to its folder. Raises OSError, ValueError."""
    device = choose_device(options.use_gpu)
    seed_everything(options.seed)
    checkpoint = Path(options.checkpoint)
    additions = read_additions(options.test_file, options.max_test_examples)
    model = load_model(checkpoint).to(device)
    print(f"Loaded model from {checkpoint}.")
    print(f"test length {len(additions)}")
    if reason := leakage_warning(checkpoint.parent, options.test_file):
        print(reason)
    predictions = answer(model, additions, options.max_gen_len)
    n_right = sum(map(str.__eq__, predictions, additions))
    accuracy = n_right / len(additions)
    print("Accuracy:", accuracy)
    print(f"test length {len(additions)}")
    write_results(checkpoint.parent, model, accuracy, predictions)


def leakage_warning(folder: Path, test_file: str) -> str | None:
    """A warning if training did not exclude this file's pairs; None if it did, or if unknown."""
    path = folder / TRAINING_CONFIG
    record = read_json(path) if path.exists() else {}
    if record.get("excluded_test_file", digest(test_file)) == digest(test_file):
        return None
    return f"training did not exclude the pairs of {test_file}: the model may have seen some"


def answer(
    model: Llama, additions: Sequence[str], max_gen_len: int, use_cache: bool = True
) -> list[str]:
    """For each addition, its question and the model's answer, up to the end token.

    `use_cache=False` is the slow, obvious version.
    """
    dataset = make_dataset(additions)
    predictions = [""] * len(additions)
    with tqdm(total=len(additions), unit="addition", leave=False, disable=None) as bar:
        for indices, prompts in question_batches(dataset):
            tokens = generation.generate(
                model,
                prompts.to(model.device),
                max_gen_len,
                Sampler(temperature=0),
                stop_id=PADDING,
                use_cache=use_cache,
            )
            for index, row in zip(indices, tokens.tolist(), strict=True):
                predictions[index] = dataset.decode(row)
            bar.update(len(indices))
    return predictions


def question_batches(dataset: CharDataset) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Indices of additions, and their questions (B, T), each with the start token.

    Each batch has questions of one length: padding between question and answer would mislead the
    model.
    """
    groups = defaultdict(list)
    for index, addition in enumerate(dataset.words):
        groups[addition.index("=") + 2].append(index)
    for length, group in groups.items():
        for indices in torch.tensor(group).split(BATCH_SIZE):
            yield indices.tolist(), dataset.batch(indices)[0][:, :length]
