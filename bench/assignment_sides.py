"""The work of one graded command, in pieces that can be timed one by one: ours.

A side has the batches of every training epoch and of every pass over a split, and does one of them
when it is asked.
"""

from collections.abc import Sequence
from typing import Any

from classifier import LlamaZeroShotClassifier, load_classifier
from mini_llama.assignment import completion, finetune, scoring
from mini_llama.assignment.batches import Batch, EncodedExamples, encode_examples, make_batches
from mini_llama.assignment.options import TRAINING, Options
from mini_llama.assignment.progress import Progress
from mini_llama.assignment.reviews import Example, with_prompt
from mini_llama.assignment.showing import Show
from mini_llama.assignment.task import Task, classifier_config, prepare
from mini_llama.assignment.training_memory import prepare_memory
from optimizer import AdamW
from utils import seed_everything

HIDDEN = Progress(0, is_hidden=True)


class Steps:
    """The steps of one command: `batches` of all epochs, `parts` of each split, a batch each."""

    def __init__(self, options: Options, texts: dict[str, Sequence[Example]], tokenizer: Any):
        self.encoded = {s: encode_examples(found, tokenizer) for s, found in texts.items()}
        self.parts = {split: _parts(options, found) for split, found in self.encoded.items()}
        self.batches: list[Batch] = []
        for epoch in range(options.epochs if options.option in TRAINING else 0):
            shuffle = finetune.seed_epoch(options.seed, epoch)
            batches = make_batches(
                self.encoded["train"], options.batch_size, shuffle, options.mask_padding
            )
            self.batches += list(batches)

    def sizes(self) -> dict[str, list[int]]:
        """Padded tokens of every step."""
        sizes = {"epochs": [batch.tokens.numel() for batch in self.batches]}
        for split, parts in self.parts.items():
            sizes[split] = [len(part.rows) * max(map(len, part.rows)) for part in parts]
        return sizes


def texts_of(options: Options, task: Task) -> dict[str, Sequence[Example]]:
    """What is tokenised, by split."""
    if options.option in TRAINING:
        return dict(task.splits)
    names = task.labels.names
    assert names is not None
    return {s: with_prompt(task.splits[s], names, options.question) for s in options.scored}


def _parts(options: Options, encoded: EncodedExamples) -> list[EncodedExamples]:
    """The examples of each batch of a pass."""
    loader = make_batches(encoded, options.batch_size, by_length=options.mask_padding)
    return [
        EncodedExamples(
            [encoded.examples[i] for i in batch.indices],
            [encoded.rows[i] for i in batch.indices],
            encoded.pad_id,
        )
        for batch in loader
    ]


class Ours:
    """The product's own functions. What is made here is the command's start."""

    def __init__(self, options: Options) -> None:
        self.options = options
        seed_everything(options.seed)
        if options.option == "generate":
            self.llama, self.tokenizer = completion.load(options, [])
            return
        self.task = prepare(options)
        self.tokenizer = self.task.tokenizer
        if options.option == "prompt":
            names = self.task.labels.names
            assert names is not None
            config = classifier_config(options, self.task)
            self.model: Any = LlamaZeroShotClassifier(config, self.tokenizer, names)
            return
        finetune.set_up_arithmetic()
        self.model = self.last = finetune.build(options, self.task)
        self.parameters = finetune.trainable_parameters(self.model)
        self.optimizer = AdamW(self.parameters.values(), lr=options.lr)
        self.settings = finetune.resume_settings(options, self.task, self.model)

    def sizes(self) -> dict[str, list[int]]:
        if self.options.option == "generate":
            return {}
        self.texts = texts_of(self.options, self.task)
        self.steps = Steps(self.options, self.texts, self.tokenizer)
        if self.options.option in TRAINING:
            prepare_memory(self.options, self.model, self.steps.encoded["train"])
        return self.steps.sizes()

    def tokenise(self) -> None:
        for examples in self.texts.values():
            encode_examples(examples, self.tokenizer)

    def train(self, _: str, index: int) -> None:
        batch = self.steps.batches[index]
        finetune.train_epoch(self.model, [batch], self.optimizer, self.options, 0, HIDDEN)

    def evaluate(self, split: str, index: int) -> None:
        scoring.predict(self.model, self.steps.parts[split][index], self.options, "", HIDDEN)

    def evaluate_last(self, split: str, index: int) -> None:
        """As when training is over, when LoRA's adapters are merged."""
        model = self.model if self.options.option == "prompt" else self.last
        scoring.predict(model, self.steps.parts[split][index], self.options, "", HIDDEN)

    def save(self) -> None:
        facts = finetune.run_facts(self.options, self.task)
        finetune.save_best(self.options, self.model, facts)
        finetune.save_progress(self.options, self.settings, self.parameters, self.optimizer, 1, 0.5)

    def read_back(self) -> None:
        self.last = load_classifier(self.options.checkpoint_path)

    def generate(self) -> None:
        prompt = completion.prompt_of(self.options)
        for temperature in (0.0, 1.0):
            writer = completion.Writer(self.llama, self.tokenizer, self.options, temperature, 1)
            with Show(self.tokenizer, temperature, 1, self.options.max_new_tokens) as show:
                writer.texts(prompt, show)
