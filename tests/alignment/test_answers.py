"""Sampled answers against generation one by one, log probabilities against the whole softmax."""

import pytest
import torch

from lora import apply_lora, get_lora_optimizer_params
from mini_llama.alignment.answers import (
    Sampling,
    answer_log_probs,
    answer_mask,
    answer_of,
    batch_of,
    merged,
    sample_answers,
)
from mini_llama.alignment.chat import Tokens
from mini_llama.inference.generation import generate
from mini_llama.inference.sampling import Sampler
from tests.helpers import random_llama, random_tokens, tiny_config

CPU = torch.device("cpu")
CONFIG = tiny_config(norm="rmsnorm", attention="causal", max_seq_len=32)


def ragged_prompts() -> list[list[int]]:
    tokens = random_tokens(CONFIG, 5, 9).tolist()
    return [row[:length] for row, length in zip(tokens, (4, 9, 1, 4, 6), strict=True)]


@pytest.mark.parametrize("rows", [5, 2])
def test_greedy_answers_are_those_to_each_prompt_alone(rows: int):
    llama, prompts = random_llama(CONFIG), ragged_prompts()
    alone = [
        generate(llama, torch.tensor([prompt]), 12, Sampler(0.0))[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    ends = {alone[0][2], alone[1][5]}  # so that answers end at different lengths
    found = sample_answers(llama, prompts, Sampling(12, ends, 0.0, rows), seed=0)
    for prompt, whole, example in zip(prompts, alone, found, strict=True):
        end = next((i + 1 for i, token in enumerate(whole) if token in ends), 12)
        assert example.ids == [*prompt, *whole[:end]]
        assert answer_of(example) == whole[:end]
        assert example.learns == [False] * len(prompt) + [True] * end
    assert len({len(answer_of(example)) for example in found}) > 1


def test_the_same_seed_gives_the_same_answers():
    llama, prompts, sampling = random_llama(CONFIG), ragged_prompts(), Sampling(12, (7,), 1.0)
    first, again, other = (sample_answers(llama, prompts, sampling, seed) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize(
    "prompts, message",
    [([], "no prompt"), ([[1], []], "no token"), ([[1], [1] * 21], "prompt 2 has 21 tokens")],
)
def test_prompts_that_cannot_be_answered_are_refused(prompts: list[list[int]], message: str):
    with pytest.raises(ValueError, match=message):
        sample_answers(random_llama(CONFIG), prompts, Sampling(12, (7,)), seed=0)


def test_log_probs_are_those_of_the_whole_softmax_whatever_the_padding():
    llama = random_llama(CONFIG)
    tokens = random_tokens(CONFIG, 3, 10).tolist()
    spans = ((3, 10), (1, 2), (5, 8))
    examples = [
        Tokens(row[:end], [False] * start + [True] * (end - start))
        for row, (start, end) in zip(tokens, spans, strict=True)
    ]
    batch = batch_of(examples, 0, CPU)
    found = answer_log_probs(llama, batch)
    expected = torch.zeros(3, 10)
    for i, (example, (start, end)) in enumerate(zip(examples, spans, strict=True)):
        logits = llama(torch.tensor([example.ids]), targets=torch.tensor([example.ids]))[0][0]
        log_probs = logits.log_softmax(-1)
        for t in range(start - 1, end - 1):
            expected[i, t] = log_probs[t, example.ids[t + 1]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(answer_mask(batch), expected != 0)


def test_a_model_with_adapters_is_merged_for_decoding():
    llama = random_llama(CONFIG)
    assert merged(llama) is llama
    apply_lora(llama)
    for parameter in get_lora_optimizer_params(llama):
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    copy, tokens = merged(llama), random_tokens(CONFIG, 2, 7)
    torch.testing.assert_close(copy(tokens)[0], llama(tokens)[0], rtol=0, atol=1e-4)
    assert copy.tok_embeddings.weight.data_ptr() == llama.tok_embeddings.weight.data_ptr()
