"""Compare the outputs of option prompt or generate with the reference outputs, if the run is the
graded command on the real stories42M.pt and the courses' data.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from config import DEFAULT_EDITION, EDITIONS, LlamaConfig
from llama import Llama
from mini_llama.assignment.agreement import Agreement, LabelComparison, compare_labels, compare_text
from mini_llama.assignment.batches import EncodedExamples
from mini_llama.assignment.options import Options, default_of
from mini_llama.assignment.reference_outputs import (
    BATCH_SIZE,
    real_data_set,
    reference_outputs,
    token_counts,
)
from mini_llama.downloads.files import STORIES42M_ARGS
from mini_llama.tokenization.base import BaseTokenizer

# Options that affect the outputs of prompt and generate, besides the data and the batch size.
PLAIN = ("max_sentence_len", "mask_padding", "dtype", "tf32", "quantize", "adapters")
PLAIN_TEXT = ("max_new_tokens", "stop_at_eos")
# A text and its ids, to recognize the courses' tokenizer.
PROBE = "I believe the meaning of life is"
PROBE_IDS = [1, 306, 4658, 278, 6593, 310, 2834, 338]


def report_predictions(
    llama: Llama,
    tokenizer: BaseTokenizer,
    options: Options,
    splits: Mapping[str, EncodedExamples],
    predictions: Mapping[str, Sequence[int]],
) -> None:
    """Print a line for each split that can be compared."""
    if options.batch_size == BATCH_SIZE and _is_graded(llama, tokenizer, options, PLAIN):
        files = [
            labels
            for split, encoded in splits.items()
            if (labels := known_labels([e.sentence for e in encoded.examples], predictions[split]))
        ]
        for agreement in compare_labels(files, options.edition or DEFAULT_EDITION):
            print(f"{agreement.file}: {agreement.message}")


def known_labels(questions: Sequence[str], predictions: Sequence[int]) -> LabelComparison | None:
    """Pair predictions for sentences, each with its question, with the references; None unless the
    sentences are a data set of the courses.
    """
    name = real_data_set(questions)
    if name is None:
        return None
    known = reference_outputs()
    labels = {edition: reference.labels[name] for edition, reference in known.items()}
    runs = {edition: reference.runs[name] for edition, reference in known.items()}
    return LabelComparison(name, predictions, labels, runs, name, token_counts()[name])


def report_text(llama: Llama, tokenizer: BaseTokenizer, options: Options, text: str) -> None:
    """Print a line for the text at temperature 0, if it can be compared."""
    is_prompt = options.prompt_text in (None, options.edition_in_force.prompt_text)
    if is_prompt and _is_graded(llama, tokenizer, options, (*PLAIN, *PLAIN_TEXT)):
        edition = options.edition or DEFAULT_EDITION
        print(f"temperature 0: {compare_known_text(text, edition).message}")


def compare_known_text(text: str, edition: str) -> Agreement:
    """Compare the text at temperature 0 with the references."""
    known = {
        name: (reference.text, reference.text_runs)
        for name, reference in reference_outputs().items()
        if reference.text is not None
    }
    prompts = [edition.prompt_text for edition in EDITIONS.values()]
    return compare_text(
        default_of("generated_sentence_low_temp_out"), text, known, edition, prompts
    )


def _is_graded(
    llama: Llama, tokenizer: BaseTokenizer, options: Options, plain: Sequence[str]
) -> bool:
    """Whether options, arithmetic, checkpoint and tokenizer are those of the graded command."""
    edition = options.edition or DEFAULT_EDITION
    if any(getattr(options, name) != default_of(name) for name in plain):
        return False
    if edition not in reference_outputs() or not _is_stories42m(llama):
        return False
    config, expected = llama.config, EDITIONS[edition]
    if (config.norm, config.attention) != (expected.norm, expected.attention):
        return False
    return tokenizer.encode(PROBE, bos=True, eos=False) == PROBE_IDS


def _is_stories42m(llama: Llama) -> bool:
    """By its shape, and because it records no norm or attention."""
    arithmetic, config = llama.arithmetic, llama.config
    if arithmetic is None or "recorded in" in f"{arithmetic}":
        return False
    shape: dict[str, Any] = {**STORIES42M_ARGS}
    usual = LlamaConfig(**shape)
    names = {*STORIES42M_ARGS, "hidden_dim", "layer_norm_eps", "rope_theta", "rope_scaling"}
    names |= {"head_dim", "attention_bias", "mlp_bias"}
    return all(getattr(config, name) == getattr(usual, name) for name in names)
